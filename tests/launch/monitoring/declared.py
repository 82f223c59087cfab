"""Whether a query names metrics, labels and values that are declared."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.shard_set.conversion_metrics import CONVERSION_METRICS
from launch.monitoring.alerts import ALERTS
from launch.monitoring.records import RECORDS
from pipeline.metrics.declared import METRICS

_OF_TARGETS = {"run", "run_dir", "node", "job", "instance"}
"""Labels that the scrape gives, or the page of `launch prometheus`."""

_OF_ALERTS = {"alertname", "alertstate", "of"}

_SELECTOR = re.compile(r"\b(alexnet[_:][a-z0-9_:]+)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)(?:=~|!~|!=|=)"([^"]*)"')

_LABELS = {
    name: dict(metric.labels) | ({"le": None} if metric.kind == "histogram" else {})
    for metric in (*METRICS, *CONVERSION_METRICS)
    for name in metric.series_names
}
_ALL_LABELS = {label for labels in _LABELS.values() for label in labels} | _OF_TARGETS


def wrong_names(query: str) -> list[str]:
    """What the query names and nobody declares."""
    return list(_wrong_names(query))


def _wrong_names(query: str) -> Iterator[str]:
    records = {record.name for record in RECORDS}
    for name, matchers in _SELECTOR.findall(query):
        if ":" in name:
            if name not in records:
                yield name
            continue
        if name not in _LABELS:
            yield name
            continue
        for label, values in _MATCHER.findall(matchers):
            known = _LABELS[name].get(label)
            if label not in _LABELS[name] and label not in _OF_TARGETS:
                yield f"{name}{{{label}}}"
            elif known and not values.startswith("$"):
                yield from (f"{label}={each}" for each in values.split("|") if each not in known)
    for alerts in re.findall(r'alertname=~"([^"]*)"', query):
        yield from set(alerts.split("|")) - {alert.name for alert in ALERTS}
    for labels in re.findall(r"\b(?:by|on|without|ignoring|group_left) \(([^)]*)\)", query):
        yield from set(labels.split(", ")) - _ALL_LABELS - _OF_ALERTS - {""}
