"""`python -m launch demo`: all that there is, on generated images, from raw data to a report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import above, at_least
from data_prep.shard_set.files import as_command
from data_prep.shard_set.streams import say
from launch import alexnet, local
from pipeline.report.__main__ import require_extra

_NUM_RANKS = 2
"""On CPUs, to show that there can be several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Train on generated images, evaluate, and write a report: about 3 minutes on 2 cores."""

    output: Path | None = None
    """The folder to write to; if not given, a new one among the temporary files."""
    nproc: Annotated[int | None, at_least(1)] = None
    """Number of ranks; if not given, one a GPU, on CPUs two."""
    epochs: Annotated[float, above(0)] = 6.0
    """How long to train."""


def run(options: Options) -> int:
    """Returns 0, or the exit code of the first command that did not succeed.

    The same command with the same folder continues one that was stopped. Raises
    `ModuleNotFoundError` if the extra `report` is not installed.
    """
    require_extra()  # before minutes of training
    folder = options.output or Path(tempfile.mkdtemp(prefix="alexnet-demo-"))
    shards, run_dir = str(folder / "demo-shards"), str(folder / "demo")
    training = ("cifar10", "--epochs", f"{options.epochs:g}", "--data.shards", shards)
    ranks = options.nproc or local.num_gpus() or _NUM_RANKS
    return (
        _alexnet("shard", "synthetic", "--output", shards)
        or _train(ranks, (*training, "--run-dir", run_dir))
        or _alexnet("evaluate", "--run-dir", run_dir)
        or _alexnet("report", run_dir)
    )


def _alexnet(*words: str) -> int:
    """Show a command and run it."""
    _show(*words)
    door = alexnet.DOORS[words[0]]
    command = (sys.executable, "-m", door.module, *door.words, *words[1:])
    return min(1, abs(subprocess.run(command, check=False).returncode))


def _train(num_ranks: int, command: tuple[str, ...]) -> int:
    """In this process, so that a signal to it stops the training in good order."""
    _show("launch", "local", "--nproc", str(num_ranks), *command)
    return local.run(local.Options(nproc=num_ranks, command=command))


def _show(*words: str) -> None:
    say("", f"$ {as_command('alexnet', *words)}")
