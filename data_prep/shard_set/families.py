"""Families of declared metrics that share their labels, and the text a registry is published as."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from data_prep.shard_set.files import as_text
from data_prep.shard_set.metric import Metric

if TYPE_CHECKING:
    import prometheus_client
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_Kind = Literal["Counter", "Gauge", "Histogram"]
"""A class of prometheus_client."""

ABSENT = math.nan
"""The first value of a gauge that is not published before it has another one."""


class Families:
    """Makes families of declared metrics that carry the same `labels`, those that each one has.

    Labels are bound once, so that recording is cheap. Without a registry nothing is recorded, and
    the package prometheus_client is not needed.
    """

    def __init__(self, registry: CollectorRegistry | None, **labels: str) -> None:
        self._registry = registry
        self._labels = labels

    def counter(self, metric: Metric) -> Counter:
        return cast("Counter", self._bound("Counter", metric))

    def counters(self, metric: Metric) -> dict[str, Counter]:
        """One counter for each value of the label that is not bound, all at 0."""
        return self._bound_each("Counter", metric)

    def gauge(self, metric: Metric, first: float = 0.0) -> Measurement:
        return Measurement(self._bound("Gauge", metric), first)

    def gauges(self, metric: Metric, first: float = 0.0) -> dict[str, Measurement]:
        """One gauge for each value of the label that is not bound."""
        bound = self._bound_each("Gauge", metric)
        return {value: Measurement(gauge, first) for value, gauge in bound.items()}

    def info(self, metric: Metric, labels: Mapping[str, str]) -> None:
        """A gauge that is 1, for what its labels say."""
        texts = {label: as_text(value) for label, value in labels.items()}
        self._family("Gauge", metric).labels(**self._bound_labels(metric), **texts).set(1)

    def histogram(self, metric: Metric) -> Histogram:
        """A histogram without labels: each would cost all buckets."""
        return cast("Histogram", self._family("Histogram", metric, buckets=metric.buckets))

    def _bound(self, kind: _Kind, metric: Metric) -> Any:
        family, labels = self._family(kind, metric), self._bound_labels(metric)
        return family.labels(**labels) if labels else family

    def _bound_each(self, kind: _Kind, metric: Metric) -> dict[str, Any]:
        family, labels = self._family(kind, metric), self._bound_labels(metric)
        ((label, values),) = (
            (name, of) for name, of in metric.labels.items() if name not in labels
        )
        return {value: family.labels(**labels, **{label: value}) for value in values or ()}

    def _family(self, kind: _Kind, metric: Metric, **options: Any) -> Any:
        if self._registry is None:
            return _Nothing()
        import prometheus_client

        family, labels = getattr(prometheus_client, kind), tuple(metric.labels)
        return family(metric.name, metric.help, labels, registry=self._registry, **options)

    def _bound_labels(self, metric: Metric) -> dict[str, str]:
        return {label: of for label, of in self._labels.items() if label in metric.labels}


class _Nothing:
    """A family that forgets."""

    def labels(self, **_labels: str) -> Self:
        return self

    def record(self, _value: float = 1) -> None: ...

    inc = set = observe = record


class Measurement:
    """A gauge that keeps its last finite value."""

    def __init__(self, gauge: Gauge, first: float) -> None:
        self._gauge = gauge
        self._highest = -math.inf
        self._gauge.set(first)

    def set(self, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._gauge.set(value)
            self._highest = max(self._highest, value)

    def raise_to(self, value: float | None) -> None:
        """Take the value if it is higher than any before."""
        if value is not None and value > self._highest:
            self.set(value)


def collected(metric: Metric) -> prometheus_client.Metric:
    """An empty family, for a collector that adds samples when it is asked."""
    import prometheus_client

    return prometheus_client.Metric(
        metric.name.removesuffix("_total"), metric.help, metric.prometheus_kind
    )


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus' text format."""
    from prometheus_client import generate_latest

    return generate_latest(cast("CollectorRegistry", _Published(registry)))


class _Published:
    """The metrics of a registry, less gauges without a value yet and less `_created` series.

    The latter would double the number of counter series; the client's own switch for them is
    global to the process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[prometheus_client.Metric]:
        for family in self._registry.collect():
            family.samples = [
                sample
                for sample in family.samples
                if not sample.name.endswith("_created") and not math.isnan(sample.value)
            ]
            if family.samples:
                yield family
