"""`python -m data_prep` that stands still in the middle of a shard, until it may go on.

    python -m tests.data_prep.held_cli FOLDER NUM_SHARDS NUM_SAMPLES ARGUMENTS…

Once the output has NUM_SHARDS tars, a worker does NUM_SAMPLES more and waits for FOLDER/go-on:
whatever a test does then, the conversion is not over. Workers import this module too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.__main__ import main
from data_prep.convert import pool
from data_prep.convert.assignment import ShardName
from data_prep.convert.shard import ShardJob, write_shard
from data_prep.shard_set.conversion_metrics import Stage
from data_prep.shard_set.rejection import RejectReason
from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from data_prep.sources.samples import Sample

_POLL_SECONDS = 0.01


class _Gate:
    """Behind each sample of a worker."""

    def __init__(self, folder: Path, num_shards: int, num_samples: int, output: Path) -> None:
        self._folder = folder
        self._num_shards = num_shards
        self._num_left = num_samples
        self._output = output

    def pass_through(self) -> None:
        if sum(1 for _ in self._output.glob("*.tar")) < self._num_shards:
            return
        if self._num_left > 1:
            self._num_left -= 1
            return
        (self._folder / f"held-{os.getpid()}").touch()
        while not (self._folder / "go-on").exists():
            time.sleep(_POLL_SECONDS)

    def write_shard(
        self,
        name: ShardName,
        samples: Sequence[Sample],
        job: ShardJob,
        count_sample: Callable[[RejectReason | None], object],
    ) -> Mapping[Stage, float]:
        def count(reason: RejectReason | None) -> None:
            count_sample(reason)
            self.pass_through()

        return write_shard(name, samples, job, count)


def _hold(arguments: list[str]) -> list[str]:
    """Returns those that are for `data_prep`."""
    folder, num_shards, num_samples, *words = arguments
    output = Path(words[words.index("--output") + 1])
    gate = _Gate(Path(folder), int(num_shards), int(num_samples), output)
    vars(pool)["write_shard"] = gate.write_shard
    return words


if __name__ in ("__main__", "__mp_main__"):  # the latter in a worker
    words = _hold(sys.argv[1:])
    if __name__ == "__main__":
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        open_streams()
        sys.exit(exit_code_after_flush(main(words)))
