"""`python -m launch follow RUN --to …`: a process of its own, which may be killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, assert_never

from data_prep.shard_set.fields import at_least
from data_prep.shard_set.locks import locked
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from pipeline.follow.destination import EXPORTS, Destination, DestinationName, require
from pipeline.follow.story import Story
from pipeline.run.directory import RunDirectory
from pipeline.run.event_tail import EventTail

_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Show a run in TensorBoard or MLflow while it trains, or export it to W&B or trackio."""

    run_dir: Annotated[Path, Named("RUN")]
    """The run directory; the run may begin later."""
    to: DestinationName
    """Where to."""
    output: Path | None = None
    """The folder of the log or export, but of MLflow's; if not given, RUN/tensorboard and so on."""
    tracking_uri: Annotated[str | None, Named("--tracking-uri", "URI")] = None
    """With --to mlflow, a server or store; if not given, the SQLite file RUN/mlflow.db."""
    once: bool = False
    """Show what there is, and end."""
    wait_seconds: Annotated[float | None, at_least(0)] = None
    """How long to wait for a run to go on that was stopped or has failed; if not given, 600."""


def run(options: Options) -> None:
    """Follow until the run has ended.

    Raises `ModuleNotFoundError` without the extra that is needed, `ValueError` if options or files
    of the run are not good, `OSError` if the destination does not take what is written.
    """
    found = RunDirectory(options.run_dir)
    open_destination = _opener(options, found)
    if options.to in EXPORTS:
        _refuse("--once", options.once or None, f"--to {options.to}")
        options = dataclasses.replace(options, once=True)
    if options.once:
        _refuse("--wait-seconds", options.wait_seconds, "what does not follow")
    if not found.events.is_file():
        if options.once:
            raise FileNotFoundError(
                f"{found.path} has no {found.events.name}: give the directory of a run that has "
                "begun"
            )
        _say(f"waiting for {found.events}")
        while not found.events.is_file():
            time.sleep(_LOOK_SECONDS)
    with _only_one(found, options):
        _follow(found, open_destination, options)


def _follow(run: RunDirectory, opened: Callable[[], Destination], options: Options) -> None:
    tail = EventTail(run.events)
    story, num_restarts, heard = None, 0, 0.0
    while True:
        rows = tail.new_rows()
        if tail.num_restarts != num_restarts:  # another run is in this directory
            story, num_restarts = None, tail.num_restarts
        is_first = story is None
        if rows:
            if story is None:
                story, destination = Story(run, rows[0].time), opened()
            for row in rows:
                story.add(row)
            destination.show(story)
            heard = story.ended if is_first and story.ended is not None else time.time()
        if rows and is_first:
            _say(f"{run.path} is in {destination} up to step {rows[-1].step:,}")
        if options.once or (story is not None and _has_ended(story, heard, options)):
            return
        time.sleep(_LOOK_SECONDS)


def _has_ended(story: Story, heard: float, options: Options) -> bool:
    """Whether the run will not go on, as far as its events say; it was last heard of at `heard`."""
    match story.outcome:
        case "running":
            return False
        case "completed":
            pass
        case "stopped" | "failed":
            seconds = _WAIT_SECONDS if options.wait_seconds is None else options.wait_seconds
            if time.time() < heard + seconds:
                return False
        case unknown:
            assert_never(unknown)
    _say(f"outcome of the run: {story.outcome}")
    return True


def _opener(options: Options, run: RunDirectory) -> Callable[[], Destination]:
    """What opens the destination. Raises `ModuleNotFoundError` and `ValueError`."""
    match options.to:
        case "tensorboard":
            _refuse("--tracking-uri", options.tracking_uri, f"--to {options.to}")
            require("tensorboard", "tensorboard")
            from pipeline.follow.tensorboard_log import TensorBoardLog

            return functools.partial(TensorBoardLog, options.output or run.path / "tensorboard")
        case "mlflow":
            _refuse("--output", options.output, f"--to {options.to}")
            require("mlflow", "mlflow", "sqlalchemy", "alembic")
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # else importing it asks the internet
            from pipeline.follow.mlflow_run import SQLITE, MlflowRun

            own = f"{SQLITE}{run.path.resolve()}/mlflow.db"
            return functools.partial(MlflowRun, options.tracking_uri or own)
        case "wandb":
            _refuse("--tracking-uri", options.tracking_uri, f"--to {options.to}")
            require("wandb", "wandb")
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would be sent to the internet
            from pipeline.follow.wandb_export import WandbExport

            return functools.partial(WandbExport, options.output or run.path / "wandb")
        case "trackio":
            _refuse("--tracking-uri", options.tracking_uri, f"--to {options.to}")
            require("trackio", "trackio")
            from pipeline.follow.trackio_export import TrackioExport

            return functools.partial(TrackioExport, options.output or run.path / "trackio")
        case unknown:
            assert_never(unknown)


def _refuse(name: str, value: object, beside: str) -> None:
    if value is not None:
        raise ValueError(f"{name} has no effect with {beside}: leave it out")


@contextlib.contextmanager
def _only_one(run: RunDirectory, options: Options) -> Iterator[None]:
    """Be the only process that writes there. Raises `BlockingIOError` if there is another."""
    place = f"{options.to} {options.output and options.output.resolve()} {options.tracking_uri}"
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run.path / f".follow-{mark}.lock"))
        except BlockingIOError:
            raise BlockingIOError(
                f"{run.path} is being followed there already: end that process first"
            ) from None
        yield


def _say(text: str) -> None:
    say(f"{text}")
