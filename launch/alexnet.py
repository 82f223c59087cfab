"""The command `alexnet`: all commands of the project under one name.

`alexnet train …` is `python -m pipeline.train …`, and so on: this process runs the module as
`python -m` does, and loads nothing of it before, so that `alexnet --help` answers at once.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_prep.shard_set.fields import did_you_mean
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say

_USAGE_ERROR = 2


class Door(NamedTuple):
    """What stands behind a command."""

    module: str
    help: str
    words: tuple[str, ...] = ()
    """The first words of the module's own command line."""


DOORS: Mapping[str, Door] = {
    "demo": Door("launch", "train on generated images and write a report", ("demo",)),
    "shard": Door("data_prep", "make a shard set from raw images", ("shard",)),
    "adopt": Door("data_prep", "make a shard set of tars that others wrote", ("adopt",)),
    "merge": Door("data_prep", "publish what all tasks of a conversion have made", ("merge",)),
    "verify": Door("data_prep", "find all that is wrong with a shard set", ("verify",)),
    "look": Door("data_prep", "say what is in a shard set", ("look",)),
    "diff": Door("data_prep", "say how two shard sets differ", ("diff",)),
    "beton": Door("data_prep", "write a shard set into one file of ffcv's format", ("beton",)),
    "benchmark": Door("pipeline.data.benchmark", "measure the readers, and choose one"),
    "train": Door("pipeline.train", "train in this process, or as a rank of torchrun"),
    "export": Door("pipeline.export", "write a trained network in formats of other programs"),
    "evaluate": Door("pipeline.evaluate", "evaluate a checkpoint on every image of a split"),
    "predict": Door("pipeline.predict", "classify images with a trained network"),
    "report": Door("pipeline.report", "write a run's report, or compare several, as one HTML page"),
    "launch": Door("launch", "start jobs: local, slurm, kubernetes; look at them: outcome"),
    "doctor": Door("launch", "check this machine for training", ("doctor",)),
    "plan": Door("launch", "say what a training would take, and how often to save", ("plan",)),
    "status": Door("launch", "say how far a run is", ("status",)),
    "explain": Door("launch", "say what happened to a run, and what to do", ("explain",)),
    "compare": Door("launch", "compare runs: results and settings", ("compare",)),
    "stop": Door("launch", "ask a run to save and leave", ("stop",)),
    "logs": Door("launch", "show what a run's job writes", ("logs",)),
    "watch": Door("launch", "serve a live page of all runs of a folder", ("watch",)),
    "follow": Door("launch", "show a run in TensorBoard, MLflow, W&B or trackio", ("follow",)),
    "prometheus": Door("launch", "configure a Prometheus that watches all runs", ("prometheus",)),
    "exporter": Door("pipeline.exporter", "serve the metrics of a node's ranks"),
}


def help_text() -> str:
    """All commands on one screen."""
    width = max(map(len, DOORS))
    commands = (f"  {name:{width}}  {door.help}" for name, door in DOORS.items())
    return "\n".join(
        (
            *("usage: alexnet COMMAND …", *commands),
            "'alexnet COMMAND --help' lists the options of one. Train on all GPUs of this machine "
            "with\n'alexnet launch local RECIPE …', where 'alexnet train RECIPE …' is one rank.\n",
        )
    )


def answer(words: Sequence[str]) -> int:
    """Say what there is, where no command is named; returns the exit code."""
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return exit_code_after_flush(0)
    if not words:
        sys.stderr.write(help_text())
        return _USAGE_ERROR
    hint = did_you_mean(words[0], DOORS, after=" ")
    say(f"error: {words[0]!r} is no command; {hint}'alexnet --help' lists them", stream=sys.stderr)
    return _USAGE_ERROR


def main() -> int:
    """Run the command of `sys.argv`; a module that is run ends the process with its exit code."""
    words = sys.argv[1:]
    door = DOORS.get(words[0]) if words else None
    if door is None:
        open_streams()
        return answer(words)
    sys.argv = [door.module, *door.words, *words[1:]]
    runpy.run_module(door.module, run_name="__main__", alter_sys=True)
    return 0
