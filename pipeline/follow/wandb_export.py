"""A run as W&B stores one that it logs offline, for `wandb sync`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import wandb

from data_prep.shard_set.files import as_text, write_atomically
from pipeline.follow.story import Story

_PROJECT = "alexnet"


class WandbExport:
    """`run-ID.wandb` in its folder below `folder`; nothing is sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def show(self, story: Story) -> None:
        """Raises `OSError` if it cannot be written, or W&B does not write it."""
        sys.argv = [*map(as_text, sys.argv)]  # W&B keeps the words of the command, and only text
        began = time.strftime("%Y%m%d_%H%M%S", time.gmtime(story.began))
        name = story.identity()[:8]
        with tempfile.TemporaryDirectory() as temporary:
            try:
                _log(story, name, temporary)
            except wandb.Error as error:
                raise OSError(f"W&B did not write the run: {error}") from None
            (written,) = Path(temporary).glob(f"wandb/offline-run-*/run-{name}.wandb")
            path = self._folder / f"offline-run-{began}-{name}" / written.name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, written.read_bytes())


def _log(story: Story, name: str, folder: str) -> None:
    settings = wandb.Settings(
        mode="offline",
        root_dir=folder,
        project=_PROJECT,
        run_id=name,
        run_name=story.name,
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )
    run = wandb.init(settings=settings, config=dict(story.parameters))
    for step, seconds, values in story.by_step():
        run.log({**values, "_timestamp": seconds}, step=step)
    run.summary.update({**story.texts(), "outcome": story.outcome})
    run.finish(exit_code=1 if story.outcome == "failed" else 0)
    wandb.teardown()
