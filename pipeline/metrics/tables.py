"""Writes the tables of `docs/metrics.md` from the declarations of the metrics.

    python -m pipeline.metrics.tables docs/metrics.md

A table stands between the comments `<!-- metrics: ORIGIN -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from data_prep.shard_set.conversion_metrics import CONVERSION_METRICS
from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.metric import table_rows
from pipeline.metrics.declared import METRICS

ALL_METRICS = (*METRICS, *CONVERSION_METRICS)

_TABLE = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""

    def table(found: re.Match[str]) -> str:
        rows = table_rows([metric for metric in ALL_METRICS if metric.origin == found[2]])
        return f"{found[1]}\n{chr(10).join(rows)}\n\n{found[3]}"

    return _TABLE.sub(table, page)


def main() -> None:
    path = Path(sys.argv[1])
    write_atomically(path, with_tables(path.read_text()).encode())


if __name__ == "__main__":
    main()
