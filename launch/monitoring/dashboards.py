"""The dashboards as Grafana imports them. Grafana itself is not needed to make them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from data_prep.shard_set.metric import Metric
from launch.monitoring.panels import DASHBOARDS, Dashboard, Panel
from launch.monitoring.records import RECORDS
from pipeline.metrics.tables import ALL_METRICS

SCHEMA_VERSION = 42
"""Of Grafana 12; newer ones migrate it."""

_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_METRICS = {name: metric for metric in ALL_METRICS for name in metric.series_names}
_RECORDS = {record.name: record for record in RECORDS}
_OTHERS = {
    "ALERTS": "What fires now: see docs/alerts.md",
    "up": "1 while Prometheus gets an answer from the exporter of a node",
}
_NAME = re.compile(r"\b(alexnet[_:][a-z0-9_:]+|ALERTS|up)\b(?!\s*\()(\{[^}]*\})?")
_VARIABLES = {
    "run": "label_values(alexnet_run_outcome, run)",
    "node": 'label_values(alexnet_rank_up{run=~"$run"}, node)',
    "rank": 'label_values(alexnet_rank_up{run=~"$run", node=~"$node"}, rank)',
    "conversion": "label_values(alexnet_convert_samples_total, conversion)",
}
_MARKS = {
    "Resumes": "alexnet_run_start_timestamp_seconds * 1000 and on (run) alexnet_resumes_total > 0",
    "Checkpoints": "alexnet_checkpoint_last_success_timestamp_seconds * 1000 > 0",
}
"""Annotations, each at the time that is the value."""


def render_dashboards() -> Mapping[str, str]:
    """The JSON of each dashboard by the name of its file."""
    return {f"{dashboard.name}.json": _text(_dashboard(dashboard)) for dashboard in DASHBOARDS}


def _text(dashboard: Mapping[str, Any]) -> str:
    """JSON whose first line says who wrote it."""
    return json.dumps(dashboard, indent=1).replace("{\n ", "{", 1) + "\n"


def render_panel_query(query: str, variables: tuple[str, ...]) -> str:
    """The query for what is chosen: each metric is asked with those `variables` that it has."""

    def chosen(match: re.Match[str]) -> str:
        own = [part for part in (match[2] or "{}")[1:-1].split(", ") if part]
        own += [f'{name}=~"${name}"' for name in variables if name in _labels(match[1])]
        return f"{match[1]}{{{', '.join(own)}}}"

    return _NAME.sub(chosen, query).replace("[_]", "[$__rate_interval]")


def _labels(name: str) -> set[str]:
    """Those of the metric by which one may choose."""
    if name in _METRICS:
        metric = _METRICS[name]
        if metric.origin == "conversion":
            return {"conversion"}
        return {"run", "node", "rank"} if "rank" in metric.labels else {"run"}
    is_of_ranks = name in _RECORDS and "by (run, node, rank)" in _RECORDS[name].query
    return {"run", "node", "rank"} if is_of_ranks else {"run"}


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    kinds = sorted({panel.kind for panel in dashboard.panels})
    names = {"type": "datasource", "name": "DS_PROMETHEUS", "label": "Prometheus"}
    source = {"current": {"text": "Prometheus", "value": "${DS_PROMETHEUS}"}, "label": "Prometheus"}
    marks = _MARKS if "run" in dashboard.variables else {}
    return {
        "description": f"{dashboard.title}. Written by `python -m launch prometheus --dashboards`.",
        "__inputs": [names | {"pluginId": "prometheus", "pluginName": "Prometheus"}],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "12.0.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": kind, "name": kind, "version": ""} for kind in kinds),
        ],
        "annotations": {"list": [_mark(name, query) for name, query in marks.items()]},
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "links": [
            {"type": "dashboards", "tags": ["alexnet"], "title": "AlexNet", "asDropdown": True}
        ],
        "panels": [
            _panel(panel, number, dashboard.variables)
            for number, panel in enumerate(dashboard.panels)
        ],
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["alexnet"],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", **source},
                *(_variable(name) for name in dashboard.variables),
            ]
        },
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.name,
    }


def _variable(name: str) -> dict[str, Any]:
    query = {"query": _VARIABLES[name], "refId": name}
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "definition": _VARIABLES[name],
        "query": query,
        "refresh": 2,  # whenever the time range changes
        "sort": 3,  # by number
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _mark(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": _SOURCE,
        "enable": True,
        "expr": render_panel_query(query, ("run",)),
        "iconColor": "blue" if name == "Resumes" else "green",
        "titleFormat": f"{name} of {{{{run}}}}",
        "useValueForTime": True,
    }


def _panel(panel: Panel, number: int, variables: tuple[str, ...]) -> dict[str, Any]:
    is_table = panel.kind == "table"
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": description_of(panel),
        "datasource": _SOURCE,
        "gridPos": {
            "x": number * _WIDTH % _COLUMNS,
            "y": number * _WIDTH // _COLUMNS * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": render_panel_query(query, variables),
                "legendFormat": "__auto",
                "format": "table" if is_table else "time_series",
                "instant": is_table,
                "range": not is_table,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def description_of(panel: Panel) -> str:
    """What the metrics are that it asks for, and what they are good for."""
    names = dict.fromkeys(match[1] for query in panel.queries for match in _NAME.finditer(query))
    metrics: dict[str, Metric | None] = {
        _METRICS[name].name if name in _METRICS else name: _METRICS.get(name) for name in names
    }
    return " ".join(
        f"{name}: {metric.help}. Good for: {metric.use}."
        if metric is not None
        else f"{name}: {_RECORDS[name].meaning if name in _RECORDS else _OTHERS[name]}."
        for name, metric in metrics.items()
    )
