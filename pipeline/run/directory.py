"""The run directory: where everything of one run lies, and what keeps two runs apart.

RUN/
  config.json           the resolved config, versions, git revision, manifest hash
  data.json             see `pipeline.run.dataset`, and mean_image.npy beside it
  events.jsonl          see `pipeline.run.events` and `pipeline.run.event_log`
  checkpoints/step-…    see `pipeline.run.checkpoint`
  predictions/val.npz   the latest evaluation, sample by sample: see `pipeline.evaluate`
  metrics/rank-*.prom   see `pipeline.metrics`
  report.html           see `pipeline.report`, and neighbours.json beside it
  tensorboard/          and mlflow.db, wandb/, trackio/: see `pipeline.follow`
  logs/*.log            what jobs started by `launch` wrote, one file each
  hangs/rank-*.txt      the stacks of a job that hung: see `pipeline.ranks.watchdog`
  STOP                  make this file to stop the run soon; it is then removed
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from data_prep.shard_set.files import path_option

_MAX_BYTES = 1 << 30


class _Entry:
    """A file or folder of the run directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDirectory, _owner: type[RunDirectory]) -> Path:
        return run.path / self.name


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The names of everything in the run directory at `path`."""

    path: Path

    config = _Entry("config.json")
    data = _Entry("data.json")
    mean_image = _Entry("mean_image.npy")
    events = _Entry("events.jsonl")
    checkpoints = _Entry("checkpoints")
    metrics = _Entry("metrics")
    report = _Entry("report.html")
    neighbours = _Entry("neighbours.json")
    logs = _Entry("logs")
    hangs = _Entry("hangs")
    stop_request = _Entry("STOP")

    def predictions(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.npz"

    @property
    def name(self) -> str:
        return Path(os.path.realpath(self.path)).name  # which takes a link to itself, too

    @property
    def has_begun(self) -> bool:
        """Whether there is anything that only a run leaves."""
        return self.config.is_file() or self.events.is_file() or self.logs.is_dir()

    @property
    def newest_log(self) -> Path | None:
        """Logs of commands that were refused, or had nothing to do, have a time before others."""
        found = (path for path in self.logs.glob("*.log") if path.is_file())
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    @property
    def targets(self) -> Path:
        """Prometheus `file_sd` targets of all runs beside this one."""
        return self.path.resolve().parent / "prometheus-targets"

    def check_entries(self, root: Path | None = None) -> None:
        """Raise `ValueError` if something there should not be read.

        That is what is no file or folder, what is larger than runs leave, and a link out of `root`.
        """
        for path in self._entries():
            if root is not None and not path.resolve().is_relative_to(root):
                raise ValueError(f"{path.name} is a link out of {root}, which is not followed")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path.name} is neither a file nor a folder")
            if path.is_file() and path.suffix != ".log" and path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"{path.name} has more than 1 GiB, which no run has written")

    def _entries(self) -> Iterator[Path]:
        """A folder comes before what is in it."""
        yield from (self.config, self.events, self.path / ".lock")
        for folder in (self.metrics, self.logs, self.hangs):
            yield folder
            if folder.is_dir():
                yield from folder.iterdir()

    @contextlib.contextmanager
    def being_made(self) -> Iterator[None]:
        """Let the block make what a job needs here.

        Raises `ValueError` if it cannot be made, or is a folder of other things than a run's.
        """
        entries = (entry for entry in vars(RunDirectory).values() if isinstance(entry, _Entry))
        own = {"predictions", *(entry.name for entry in entries)}
        try:
            if self.path.exists() and not self.events.exists():
                names = {path.name for path in self.path.iterdir() if path.name[0] != "."}
                if names - own and not any(self.checkpoints.glob("step-*")):
                    raise ValueError(
                        f"--run-dir {self.path} is no run directory, and holds "
                        f"{min(names - own)}: give a new or empty directory"
                    )
            yield
        except (FileExistsError, NotADirectoryError):
            raise ValueError(
                f"--run-dir {self.path} cannot be made: a file of that name is in the way; "
                "give another directory"
            ) from None
        except OSError as error:
            raise ValueError(
                f"--run-dir {self.path} cannot be written to: {error.strerror}; "
                "give another directory"
            ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkSource:
    """What `--fork-from RUN[@CHECKPOINT]` means."""

    run: RunDirectory
    checkpoint: str
    """newest, best or a step."""

    @classmethod
    def parsed(cls, text: str) -> Self:
        """An @ before anything but a checkpoint's name belongs to the directory's."""
        run, _, name = text.rpartition("@")
        if not run or not (name in ("newest", "best") or name.isdecimal()):
            run, name = text, "newest"
        return cls(run=RunDirectory(path_option(run).absolute()), checkpoint=name)

    def __str__(self) -> str:
        return f"{self.run.path}@{self.checkpoint}"
