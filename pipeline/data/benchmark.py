"""The command `python -m pipeline.data.benchmark`: see `pipeline.benchmark.measure`."""

from __future__ import annotations

from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from pipeline.benchmark.measure import main
from pipeline.ranks.failure import leave

if __name__ == "__main__":
    open_streams()
    leave(exit_code_after_flush(main()))
