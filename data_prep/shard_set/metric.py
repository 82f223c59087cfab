"""What a metric is: declared once, without the client that publishes it.

The families that processes publish, the tables of `docs/metrics.md`, rules, alerts and dashboards
derive from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
"""An `info` is a gauge that is always 1, for what its labels say."""

Origin = Literal["rank", "job", "exporter", "conversion"]
"""Who publishes it: each rank, rank 0 for the job, the exporter of a node, a conversion."""

Summed = Literal[
    "sum over ranks",
    "max over ranks",
    "min over ranks",
    "one a job",
    "one a node",
    "sum over tasks",
    "max over tasks",
    "max over servers",  # those that serve one and the same
    "not at all",
]

_UNITS = ("seconds", "bytes", "joules", "ratio", "samples", "steps", "batches", "epochs", "ranks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, by the conventions of Prometheus."""

    name: str
    """Whole, with `alexnet_`."""
    kind: Kind
    help: str
    """What it is."""
    use: str
    """What it is good for."""
    origin: Origin
    summed: Summed
    """How the series of one run, or of one conversion, are put together."""
    labels: Mapping[str, Sequence[str] | None] = field(default_factory=dict, hash=False)
    """The values that each label may have; None where they are not known beforehand."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, ascending."""

    @property
    def unit(self) -> str:
        """That of its values, which its name says; empty for a plain number."""
        words = self.name.split("_")
        return next((word for word in reversed(words) if word in _UNITS), "")

    @property
    def prometheus_kind(self) -> str:
        """Its type in the text format."""
        return "gauge" if self.kind == "info" else self.kind

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def table_rows(metrics: Sequence[Metric]) -> Iterator[str]:
    """A Markdown table of the metrics, line by line."""
    yield "| name | type | labels | meaning | good for | taken together |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        closed = [(label, values) for label, values in metric.labels.items() if values]
        values = "".join(
            f"; `{label}`: {', '.join(f'`{value}`' for value in of)}" for label, of in closed
        )
        cells = (labels, f"{metric.help}{values}", metric.use, metric.summed)
        yield f"| `{metric.name}` | {metric.prometheus_kind} | {' | '.join(cells)} |"
