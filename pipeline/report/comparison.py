"""Several runs side by side: in which settings they differ, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.shard_set.files import as_text, describe
from pipeline.report.summary import Summary, describe_ranks
from pipeline.report.words import flatten, percent
from pipeline.run.console import duration
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import history_of, read_rows
from pipeline.run.events import Event
from pipeline.run.ledger import SECOND_CLASSES, Ledger, SecondClass, ledger_of
from pipeline.run.settings import read_saved

NOTHING = "–"
"""Where a run has no such value."""

_SHOWN_CLASSES: Sequence[SecondClass] = ("data_wait", "rank_wait", "lost", "down")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """What is compared of one run."""

    name: str
    """Of its directory; its path where another one of the runs has that name."""
    settings: Mapping[str, str]
    """Everything in `config.json`, by dotted name."""
    history: Sequence[Event]
    summary: Summary
    ledger: Ledger | None


def read_compared(runs: Sequence[RunDirectory]) -> tuple[list[ComparedRun], list[str]]:
    """Those of the runs that can be read, in their order, and a sentence for each of the others.

    Raises `ValueError` if none can be read.
    """
    found, faults = list[ComparedRun](), list[str]()
    names = [run.name for run in runs]
    for run in runs:
        name = run.name if names.count(run.name) == 1 else str(run.path)
        try:
            found.append(_read(run, as_text(name)))
        except (OSError, ValueError) as error:
            faults.append(describe(error))
    if not found:
        raise ValueError("; ".join(faults))
    return found, faults


def _read(run: RunDirectory, name: str) -> ComparedRun:
    saved = read_saved(run)
    rows = list(read_rows(run.events))
    config = saved.pop("config")
    return ComparedRun(
        name=name,
        settings=dict(flatten({"recipe": saved["recipe"]} | config | saved)),
        history=history_of(rows),
        summary=Summary(rows),
        ledger=ledger_of(rows),
    )


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, and what each run has."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    table = {name: [run.settings.get(name, NOTHING) for run in runs] for name in names}
    return {name: values for name, values in table.items() if len({*values}) > 1}


def results(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """What came of each run, by what it is; without rows that no run has a value for."""
    columns = [_scores(run.summary) | _times(run.summary, run.ledger) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, NOTHING) for column in columns] for name in names}


def _scores(summary: Summary) -> dict[str, str]:
    final, best, start = summary.final, summary.best1, summary.latest_start
    found: dict[str, str] = {"ended": summary.outcome} if start else {}
    if final and best and final.seen:
        found["top-1"] = percent(final.correct1 / final.seen, 2)
        found["best top-1"] = f"{percent(best.correct1 / best.seen, 2)} at epoch {best.epoch:.4g}"
        if final.correct5 is not None:
            found["top-5"] = percent(final.correct5 / final.seen, 2)
        found["validation loss"] = f"{final.loss:.4f}"
        found["views"] = str(final.views or 1)
    if start:
        found["steps"] = f"{summary.step:,} of {start.target_steps:,}"
        found["ranks"] = describe_ranks(start)
    return found


def _times(summary: Summary, ledger: Ledger | None) -> dict[str, str]:
    found = {}
    if summary.images_per_second is not None:
        found["images/s, median"] = f"{summary.images_per_second:,.0f}"
    if ledger:
        found["wall clock"] = duration(ledger.total_seconds)
        found["of which steps"] = percent(ledger.goodput)
        for name in _SHOWN_CLASSES if ledger.total_seconds else ():
            share = ledger.seconds[name] / ledger.total_seconds
            found[SECOND_CLASSES[name]] = percent(share)
        found["attempts"] = f"{ledger.num_attempts:,}"
        found["preemptions"] = f"{ledger.num_preemptions:,}"
    if summary.gpu_seconds:
        found["GPU-hours"] = f"{summary.gpu_seconds / 3600:,.2f}"
    return found
