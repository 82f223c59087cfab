"""The queries of dashboards, for a Prometheus without a Grafana before it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.pipeline.monitoring import Api


def queries_of(dashboards: Mapping[str, Any]) -> list[str]:
    """Those of panels and marks, where all runs, nodes and ranks are chosen."""
    queries = [
        query
        for dashboard in dashboards.values()
        for query in (
            *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
            *(mark["expr"] for mark in dashboard["annotations"]["list"]),
        )
    ]
    chosen = (re.sub(r'"\$\w+"', '".*"', query) for query in queries)
    return list(dict.fromkeys(query.replace("$__rate_interval", "8s") for query in chosen))


def answered(api: Api, queries: Iterable[str]) -> set[str]:
    """Those that have a number for an answer."""
    return {
        query for query in queries if any(math.isfinite(value) for _, value in api.query(query))
    }
