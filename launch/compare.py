"""`python -m launch compare RUN1 RUN2 …`: results, speed, goodput and settings side by side."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from data_prep.shard_set.files import path_option, printable
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from pipeline.report.comparison import differing_settings, read_compared, results
from pipeline.run.directory import RunDirectory

_GAP = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Compare runs: what came of each, and the settings in which they differ."""

    runs: Annotated[tuple[str, ...], Named("RUN")]
    """The directories of two or more runs."""


def run(options: Options) -> None:
    """A run that cannot be read is named at the end.

    Raises `ValueError` if none can be read, or only one is given.
    """
    if len(options.runs) < 2:
        raise ValueError(f"RUN is {options.runs[0]} alone: give two or more to compare")
    found, faults = read_compared([RunDirectory(path_option(path)) for path in options.runs])
    tables = {"": {"": [run.name for run in found]}, "results": results(found)}
    tables["settings that differ"] = differing_settings(found)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines_of(tables, width):
        say(line)
    for fault in faults:
        say(f"warning: left out: {fault}", stream=sys.stderr)


def lines_of(tables: Mapping[str, Mapping[str, Sequence[str]]], width: int | None) -> list[str]:
    """Columns of one width each; what is wider than its share of the terminal is cut."""
    tables = {
        title: {printable(name): [*map(printable, values)] for name, values in table.items()}
        for title, table in tables.items()
    }
    rows = [[name, *values] for table in tables.values() for name, values in table.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None and sum(widths) + _GAP * len(widths) > width:
        share = max(8, (width - widths[0]) // (len(widths) - 1) - _GAP)
        widths = [widths[0], *(min(share, each) for each in widths[1:])]
    lines = []
    for title, table in tables.items():
        lines += ["", title] if title and table else []
        for name, values in table.items():
            cells = [_cut(text, size) for text, size in zip((name, *values), widths, strict=True)]
            lines.append((" " * _GAP).join(cells).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"
