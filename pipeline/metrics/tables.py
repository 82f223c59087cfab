"""Writes the tables of `docs/metrics.md` from the declarations of the metrics.

    python -m pipeline.metrics.tables docs/metrics.md

A table stands between the comments `<!-- metrics: ORIGIN -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.conversion_metrics import CONVERSION_METRICS
from data_prep.shard_set.files import describe, write_atomically
from data_prep.shard_set.metric import table_rows
from data_prep.shard_set.options import Named, read_options
from data_prep.shard_set.streams import say
from pipeline.metrics.declared import METRICS

ALL_METRICS = (*METRICS, *CONVERSION_METRICS)

_TABLE = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""

    def table(found: re.Match[str]) -> str:
        rows = table_rows([metric for metric in ALL_METRICS if metric.origin == found[2]])
        return f"{found[1]}\n{chr(10).join(rows)}\n\n{found[3]}"

    return _TABLE.sub(table, page)


@dataclass(frozen=True, kw_only=True, slots=True)
class TablesOptions:
    """Write the tables of a page from the declarations of the metrics."""

    page: Annotated[Path, Named("PAGE")]
    """The page, such as docs/metrics.md; it is rewritten."""


def main(arguments: Sequence[str] | None = None) -> int:
    path = read_options("pipeline.metrics.tables", TablesOptions, arguments).page
    try:
        write_atomically(path, with_tables(path.read_text()).encode())
    except (OSError, UnicodeError) as error:
        say(f"error: {path} cannot be rewritten: {describe(error)}", stream=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
