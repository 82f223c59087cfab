"""Metrics that share their labels, and the text a registry is published as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from data_prep.shard_set.files import as_text

T = TypeVar("T", Counter, Gauge)

_PREFIX = "alexnet"

ABSENT = math.nan
"""The first value of a gauge that is not published before it has another one."""


class Families:
    """Makes metrics that all carry the same `labels`, bound once so that recording is cheap."""

    def __init__(self, registry: CollectorRegistry, **labels: str) -> None:
        self._registry = registry
        self._labels = labels

    def counter(self, name: str, documentation: str) -> Counter:
        return self._bound(Counter, name, documentation)

    def counters(
        self, name: str, documentation: str, label: str, values: Iterable[str]
    ) -> dict[str, Counter]:
        """One counter for each of the `values` of one more label, all at 0."""
        return self._bound_each(Counter, name, documentation, label, values)

    def gauge(self, name: str, documentation: str, first: float = 0.0) -> Measurement:
        return Measurement(self._bound(Gauge, name, documentation), first)

    def gauges(
        self,
        name: str,
        documentation: str,
        label: str,
        values: Iterable[str],
        first: float = 0.0,
    ) -> dict[str, Measurement]:
        """One gauge for each of the `values` of one more label."""
        bound = self._bound_each(Gauge, name, documentation, label, values)
        return {value: Measurement(gauge, first) for value, gauge in bound.items()}

    def info(self, name: str, documentation: str, labels: Mapping[str, str]) -> None:
        """A gauge that is 1, for what its labels say."""
        texts = {label: as_text(value) for label, value in labels.items()}
        self._family(Gauge, name, documentation, *labels).labels(**self._labels, **texts).set(1)

    def histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram without labels, whatever the others carry: each label costs all buckets."""
        return Histogram(
            name, documentation, namespace=_PREFIX, registry=self._registry, buckets=buckets
        )

    def _bound(self, kind: type[T], name: str, documentation: str) -> T:
        family = self._family(kind, name, documentation)
        return family.labels(**self._labels) if self._labels else family

    def _bound_each(
        self, kind: type[T], name: str, documentation: str, label: str, values: Iterable[str]
    ) -> dict[str, T]:
        family = self._family(kind, name, documentation, label)
        return {value: family.labels(**self._labels, **{label: value}) for value in values}

    def _family(self, kind: type[T], name: str, documentation: str, *labels: str) -> T:
        names = [*self._labels, *labels]
        return kind(name, documentation, names, namespace=_PREFIX, registry=self._registry)


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


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus' text format."""
    return generate_latest(_Published(registry))


class _Published(Collector):
    """The metrics of a registry, less gauges without a value yet and less `_created` series.

    The latter would double the number of counter series; the client's own switch for them is
    global to the process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [
                sample
                for sample in family.samples
                if not sample.name.endswith("_created") and not math.isnan(sample.value)
            ]
            if family.samples:
                yield family
