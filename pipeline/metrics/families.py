"""Metrics that share their labels, and the text a registry is published as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

T = TypeVar("T", Counter, Gauge)

_PREFIX = "alexnet"


class Families:
    """Makes metrics that all carry the same `labels`, bound once so that recording is cheap."""

    def __init__(self, registry: CollectorRegistry, **labels: str) -> None:
        self._registry = registry
        self._labels = labels

    def counter(self, name: str, documentation: str) -> Counter:
        family = self._family(Counter, name, documentation)
        return family.labels(**self._labels) if self._labels else family

    def counters(
        self, name: str, documentation: str, label: str, values: Iterable[str]
    ) -> dict[str, Counter]:
        """One counter for each of the `values` of one more label, all at 0."""
        family = self._family(Counter, name, documentation, label)
        return {value: family.labels(**self._labels, **{label: value}) for value in values}

    def gauge(self, name: str, documentation: str) -> Gauge:
        """A gauge that starts at 0."""
        family = self._family(Gauge, name, documentation)
        return family.labels(**self._labels) if self._labels else family

    def measurement(self, name: str, documentation: str) -> Measurement:
        return Measurement(self.gauge(name, documentation))

    def measurements(
        self, name: str, documentation: str, label: str, values: Iterable[str]
    ) -> dict[str, Measurement]:
        """One measurement for each of the `values` of one more label."""
        family = self._family(Gauge, name, documentation, label)
        bound = {value: family.labels(**self._labels, **{label: value}) for value in values}
        return {value: Measurement(gauge) for value, gauge in bound.items()}

    def state_set(
        self, name: str, documentation: str, label: str, states: Iterable[str]
    ) -> StateSet:
        """A gauge for each of the `states`, 1 for the current one; it starts at the first."""
        family = self.gauge_family(name, documentation, label)
        return StateSet(
            {state: family.labels(**self._labels, **{label: state}) for state in states}
        )

    def gauge_family(self, name: str, documentation: str, *labels: str) -> Gauge:
        """A gauge with more labels, whose values the caller binds."""
        return self._family(Gauge, name, documentation, *labels)

    def _family(self, kind: type[T], name: str, documentation: str, *labels: str) -> T:
        names = [*self._labels, *labels]
        return kind(name, documentation, names, namespace=_PREFIX, registry=self._registry)

    def histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        """A histogram without labels, whatever the others carry: each label costs all buckets."""
        return Histogram(
            name, documentation, namespace=_PREFIX, registry=self._registry, buckets=buckets
        )


class StateSet:
    """Gauges of which one is 1 and the others are 0."""

    def __init__(self, gauges: Mapping[str, Gauge]) -> None:
        self._gauges = gauges
        self.set(next(iter(gauges)))

    def set(self, state: str) -> None:
        """Raises `KeyError` if there is no such state."""
        self._gauges[state].set(1)
        for other in self._gauges.keys() - {state}:
            self._gauges[other].set(0)


class Measurement:
    """A gauge that is published from its first finite value on, and keeps the last finite one."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._highest = -math.inf
        self._gauge.set(math.nan)

    def set(self, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._gauge.set(value)
            self._highest = max(self._highest, value)

    def raise_to(self, value: float | None) -> None:
        """Take the value if it is higher than any before."""
        if value is not None and value > self._highest:
            self.set(value)


class _Published:
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


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus' text format."""
    published: Collector = _Published(registry)
    return generate_latest(published)
