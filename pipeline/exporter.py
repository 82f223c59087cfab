"""The command `python -m pipeline.exporter`: see `pipeline.metrics.exporter`."""

from __future__ import annotations

import sys

from data_prep.shard_set.streams import open_streams
from pipeline.metrics.exporter import main

if __name__ == "__main__":
    open_streams()
    sys.exit(main())
