"""The rules as Prometheus reads them, with all durations divided by one factor."""

from __future__ import annotations

import json
import re

from launch.monitoring.alerts import ALERTS, Alert
from launch.monitoring.records import RECORDS, Record

HEAD = "# Written by `python -m launch prometheus`, again at each call; copy it to keep changes.\n"

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?P<before>\[=?|\boffset |\b)(?P<number>\d+)(?P<unit>[smhd])\b")


def render_rules(divide_by: float = 1) -> str:
    """All rules as a file (YAML); windows, `for`s and thresholds in seconds are divided.

    Then what takes minutes can be watched in seconds; scrapes have to be as many times as frequent.
    """
    rules = [*(_record(record, divide_by) for record in RECORDS)]
    rules += [_alert(alert, divide_by) for alert in ALERTS]
    return f"{HEAD}groups:\n  - name: alexnet\n    rules:\n" + "".join(rules)


def _record(record: Record, divide_by: float) -> str:
    return f"      - record: {record.name}\n{_expression(record.query, divide_by)}"


def _alert(alert: Alert, divide_by: float) -> str:
    texts = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": alert.runbook,
    }
    return (
        f"      - alert: {alert.name}\n{_expression(alert.query, divide_by)}"
        f"        for: {divided(alert.hold, divide_by)}\n"
        f"        labels: {{severity: {alert.severity}}}\n"
        "        annotations:\n"
        + "".join(f"          {name}: {json.dumps(text)}\n" for name, text in texts.items())
    )


def _expression(query: str, divide_by: float) -> str:
    lines = "".join(f"          {line}\n" for line in render_query(query, divide_by).splitlines())
    return f"        expr: |\n{lines}"


def render_query(query: str, divide_by: float = 1) -> str:
    """A query of a declaration as PromQL: durations divided, those outside of ranges in seconds.

    A range that begins with `=` stays as it is.
    """

    def replaced(match: re.Match[str]) -> str:
        before, text = match["before"], match["number"] + match["unit"]
        if before == "[=":
            return f"[{text}"
        if before:
            return before + divided(text, divide_by)
        return f"{int(match['number']) * _SECONDS[match['unit']] / divide_by:g}"

    return _DURATION.sub(replaced, query)


def divided(duration: str, divide_by: float) -> str:
    """A duration of Prometheus, in milliseconds if it is divided."""
    if divide_by == 1:
        return duration
    seconds = int(duration[:-1]) * _SECONDS[duration[-1]] / divide_by
    return f"{round(1000 * seconds)}ms"
