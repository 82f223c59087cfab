"""What a program that shows runs is to a follower."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol

from pipeline.follow.story import Story

DestinationName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
"""The name of each, which is that of the extra that it needs, too."""

EXPORTS: tuple[DestinationName, ...] = ("wandb", "trackio")
"""These are not followed: the whole run is written once, in the place of what was there."""


class Destination(Protocol):
    """Where a run is shown. Its text says where to look."""

    def show(self, story: Story) -> None:
        """Make it show the story so far; called again when that has grown.

        What an earlier follower has shown is not shown twice, wherever that one was killed.
        """


def require(extra: DestinationName, *modules: str) -> None:
    """Raise `ModuleNotFoundError` if a module of the extra is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"--to {extra} needs {' and '.join(missing)}: pip install 'alexnet-2012[{extra}]'"
        )
