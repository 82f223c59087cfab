"""Evaluates a run's checkpoint exactly, and records the result in the run.

    torchrun --nproc_per_node=N -m pipeline.evaluate --run-dir RUN [--split val] [--shards SHARDS]

`--shards` is the run's own shard set at another place, or another one with the same classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

from torch import nn

from data_prep.shard_set.fields import Reads, choice_of
from data_prep.shard_set.files import expanded
from data_prep.shard_set.options import read_options
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from pipeline.config.data import location_option
from pipeline.evaluate.shards import open_shards
from pipeline.model.build import build_model, load_weights
from pipeline.ranks.connect import connect, failure_of_all
from pipeline.ranks.failure import exit_code_of, leave, sentence_of
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append, of_type, read_events
from pipeline.run.event_rows import row_of
from pipeline.run.events import RunEvent
from pipeline.run.settings import Settings, read_settings, saved_settings
from pipeline.train.evaluation import (
    Evaluation,
    evaluate,
    evaluation_table,
    save_predictions,
)
from pipeline.trained.exported import is_export, read_export

_REPORT_SECONDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Evaluate a run's checkpoint exactly, on any number of ranks."""

    run_dir: Path
    """The run's directory, or the folder of an export with model.safetensors."""
    split: str = "val"
    """The split to evaluate."""
    checkpoint: Annotated[str, Reads(expanded)] = "newest"
    """The checkpoint to evaluate: newest, best, a step or a checkpoint's path."""
    views: Annotated[int | None, choice_of(1, 10)] = None
    """1: the middle of each image, 10: the ten views of 2012; if not given, as in training."""
    shards: Annotated[str | None, Reads(location_option)] = None
    """Where the shard set is now, or another one with the same classes."""
    cache_dir: Annotated[str | None, Reads(location_option)] = None
    """Where shards at a URL are staged on this host."""
    json: bool = False
    """Print one line of JSON."""


def _evaluate_run(
    options: Options,
    run: RunDirectory,
    settings: Settings,
    world: World,
    resources: contextlib.ExitStack,
) -> None:
    world.check_same_on_all_ranks({"--split": options.split, "--views": options.views})
    with world.fail_together():
        places = options.shards, options.cache_dir
        data, own = open_shards(run, settings, *places, world.device, resources)
        # By the mean of the run's own shard set, which the network learned with.
        normalizer, views = own.normalizer(), options.views or data.config.evaluation.views
        evaluated = data.open_evaluation(options.split, views, normalizer)
        model = build_model(data.config.model, data.manifest.num_classes, data.input_size())
        chosen = _load(model, run, settings, options.checkpoint) if world.is_main else None
    world.check_same_on_all_ranks({"the hash of the manifest": data.manifest_sha256})
    # From rank 0: a run that goes on saves and deletes, and ranks could choose differently.
    world.broadcast_tensors(model.to(world.device).state_dict().values())
    result = evaluate(
        model,
        evaluated,
        world,
        build_mesh(world, "fused", data.config.distributed.timeout_seconds),
        step=0 if chosen is None else chosen[1],
        epoch=0.0,  # the events of the run say which it is
        by="evaluate",
        own_shards=data.manifest_sha256 == own.manifest_sha256,
    )
    if chosen is not None:
        _report(run, chosen[0], result, as_json=options.json)


def _settings_of(run: RunDirectory, checkpoint_name: str) -> Settings:
    """What the run, or the export, says of itself; raises `ValueError`."""
    if not is_export(run.path):
        return read_settings(run)
    if checkpoint_name != "newest":
        raise ValueError(f"--checkpoint has no effect on the export {run.path}: leave it out")
    stored = read_export(run.path)
    return Settings(
        recipe=stored.origin.recipe,
        config=stored.config,
        manifest_sha256=stored.dataset.manifest_sha256,
    )


def _load(model: nn.Module, run: RunDirectory, settings: Settings, name: str) -> tuple[Path, int]:
    """Put the weights of the checkpoint `name` into `model`; returns its path and step.

    Of an export they are its only ones. Raises `ValueError` if it is not there, damaged or of
    another run.
    """
    if is_export(run.path):
        stored = read_export(run.path)
        load_weights(model, stored.weights, column=None)
        return run.path, stored.origin.step
    while True:
        path = checkpoint.named(run.checkpoints, name)
        other = RunDirectory(path.parent.parent)
        if path.resolve().parent != run.checkpoints.resolve() and other.events.is_file():
            raise ValueError(f"--checkpoint {name} is of another run: give --run-dir {other.path}")
        try:
            state = checkpoint.load(path)
            break
        except checkpoint.CheckpointError:
            if path.exists():
                raise  # else the run has deleted it since: choose again
    settings.check_continues(saved_settings(state, path), path)
    load_weights(model, state["model"], column=None)
    return path, state["progress"]["step"]


def _report(run: RunDirectory, path: Path, result: Evaluation, *, as_json: bool) -> None:
    """Print the result, and record it if the checkpoint at `path` is in the run."""
    console, event = Console(sys.stdout), result.event
    if as_json:
        row = row_of(event)
        shown = {name: row[name] for name in row if name not in ("kind", "epoch", "time")}
        console.line(json.dumps({"checkpoint": str(path)} | shown))
    else:
        console.line(f"{path}, step {event.step:,}")
        console.table(evaluation_table(event))
    if is_export(run.path):
        return  # it stays as it was made
    try:
        if path.resolve().parent != run.checkpoints.resolve():
            raise ValueError(f"{path} is not in {run.checkpoints}")
        # First the predictions: a report between the two takes them for what they are, not new.
        if event.own_shards:
            save_predictions(run, result)
        starts = of_type(read_events(run.events), RunEvent)
        if not starts:
            raise ValueError(f"{run.events} has no start of the run; restore it from a copy")
        epoch = event.step / starts[-1].steps_per_epoch
        append(run.events, dataclasses.replace(event, epoch=epoch))
    except (OSError, ValueError) as error:
        say(f"warning: the evaluation is not recorded: {sentence_of(error)}", stream=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.evaluate", Options, arguments)
    run = RunDirectory(options.run_dir)
    signal.signal(signal.SIGTERM, _leave_soon)

    def body() -> int:
        environment = LaunchEnvironment.read()
        try:
            settings = _settings_of(run, options.checkpoint)
        except ValueError as error:
            raise failure_of_all(environment, error) from None
        with (
            connect(environment, settings.config.distributed) as world,
            contextlib.ExitStack() as resources,
        ):
            _evaluate_run(options, run, settings, world, resources)
        return 0

    return exit_code_of(body)


def _leave_soon(_number: int, _frame: FrameType | None) -> None:
    """Leave time to say why: torchrun ends this rank because another one has failed."""
    signal.alarm(_REPORT_SECONDS)


if __name__ == "__main__":
    open_streams()
    leave(exit_code_after_flush(main()))
