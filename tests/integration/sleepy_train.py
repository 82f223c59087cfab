"""`pipeline.train`, but one rank falls asleep in one attempt, where a test says.

    torchrun … -m tests.integration.sleepy_train MARK RANK NAME STEP ARGUMENTS…

The rank sleeps when NAME, `reading` or `computing`, comes for the STEP-th time, unless the file
MARK is there: it is made then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.loader import Loader
from pipeline.failure import leave
from pipeline.replica import Replica
from pipeline.train import main


def fall_asleep(owner: type[Any], name: str, mark: Path, times: Iterator[int]) -> None:
    plain = getattr(owner, name)

    def sleepy(*arguments: Any, **options: Any) -> Any:
        if next(times) == 0 and not mark.exists():
            mark.touch()
            time.sleep(10_000)
        return plain(*arguments, **options)

    setattr(owner, name, sleepy)


if __name__ == "__main__":
    mark, rank, where, step, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        owner, name = {"reading": (Loader, "__next__"), "computing": (Replica, "add_gradients")}[
            where
        ]
        fall_asleep(owner, name, Path(mark), iter(range(int(step), -1_000_000, -1)))
    leave(main(arguments))
