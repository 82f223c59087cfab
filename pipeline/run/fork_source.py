"""What `--fork-from RUN[@CHECKPOINT]` means. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from data_prep.shard_set.files import path_option
from pipeline.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkSource:
    """Where another run's checkpoint is."""

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
