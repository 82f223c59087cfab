"""Rules and cases as promtool takes them."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.monitoring.alerts import ALERTS
from launch.monitoring.rules import render_rules
from tests.launch.monitoring.cases import Case, Series, Values, healthy
from tests.pipeline.monitoring import require_tool

Rule = dict[str, Any]

SEVERITY = {alert.name: alert.severity for alert in ALERTS}
_NAME = re.compile(r"\b(?:alexnet[a-z0-9_:]+|up)\b")


def load_all() -> list[Rule]:
    """Those of the rendered file."""
    (group,) = yaml.safe_load(render_rules())["groups"]
    return list(group["rules"])


def load_rules() -> list[Rule]:
    """The same; of the annotations only the summary, which cases have too."""
    rules = load_all()
    for rule in rules:
        if "alert" in rule:
            rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    return rules


def name_of(rule: Rule) -> str:
    return str(rule.get("alert") or rule["record"])


def needed_by(rule: Rule, rules: Sequence[Rule]) -> list[Rule]:
    """The rule and those that it asks for, in their order."""
    wanted, queue = {name_of(rule)}, [rule]
    by_name = {name_of(each): each for each in rules}
    while queue:
        expression = str(queue.pop()["expr"])
        for name in re.findall(r"[A-Za-z_:0-9]+", expression):
            if name in by_name and name not in wanted:
                wanted.add(name)
                queue.append(by_name[name])
    return replace([each for each in rules if name_of(each) in wanted], rule)


def replace(rules: Iterable[Rule], changed: Rule) -> list[Rule]:
    """The rules with this one in the place of the one of its name."""
    return [changed if name_of(each) == name_of(changed) else each for each in rules]


def metrics_in(rules: Iterable[Rule]) -> set[str]:
    return {name for rule in rules for name in _NAME.findall(str(rule["expr"]))}


def render_test(
    cases: Sequence[Case], alerts: Iterable[str], metrics: set[str] | None = None
) -> str:
    """A test of the cases, all of one step: that the alerts fire when they say, and only then.

    It looks at each time at which anything changes, and just before. Behind the name of an alert
    may stand the number of a mutant. `metrics` are those that the rules need; None: all.
    """
    (step,) = {case.step for case in cases}
    borders = {
        time for case in cases for each in case.firing for time in (each.since, each.until or 0)
    }
    looks = {time for case in cases for time in case.looks}
    end = max({1500.0} | borders | looks) + 2 * step
    times = sorted({time - step for time in borders if time} | borders | (looks or {end}))
    series = [
        {"series": rendered, "values": values}
        for case in cases
        for rendered, values in _series(case, int(end) // step + 1, metrics)
    ]
    checks = [
        {
            "eval_time": f"{time:.0f}s",
            "alertname": alert,
            "exp_alerts": _expected(cases, alert.partition(" ")[0], time),
        }
        for alert in alerts
        for time in times
    ]
    tests = [{"interval": f"{step}s", "input_series": series, "alert_rule_test": checks}]
    return json.dumps({"evaluation_interval": f"{step}s", "tests": tests})


def write_test(path: Path, rules: Sequence[Rule], test: str) -> None:
    """The rules, and a test of them beside them."""
    name = f"{path.stem}.rules.json"
    path.with_name(name).write_text(json.dumps({"groups": [{"name": "all", "rules": [*rules]}]}))
    path.write_text(f'{{"rule_files": ["{name}"], {test[1:]}')


def _series(case: Case, length: int, metrics: set[str] | None) -> Iterator[tuple[str, str]]:
    everything = (healthy() if case.kind == "run" else {}) | dict(case.series)
    for series, values in everything.items():
        if metrics is None or series.name in metrics:
            yield _selector(series, case), _values(values, length, case.step)


def _selector(series: Series, case: Case) -> str:
    labels = {case.kind: case.run, **dict(series.labels)}
    inner = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{series.name}{{{inner}}}"


def _values(values: Values, length: int, step: int) -> str:
    """One after another; the end of a series is the one of a scrape that no longer has it."""
    texts, was_there = [], False
    for index in range(length):
        value = values(float(index * step))
        texts.append(f"{value:.10g}" if value is not None else "stale" if was_there else "_")
        was_there = value is not None
    runs = ((text, sum(1 for _ in run)) for text, run in itertools.groupby(texts))
    return " ".join(text if times == 1 else _repeated(text, times) for text, times in runs)


def _repeated(text: str, times: int) -> str:
    return f"_x{times}" if text == "_" else f"{text}+0x{times - 1}"


def _expected(cases: Sequence[Case], alert: str, time: float) -> list[Mapping[str, Any]]:
    return [
        {
            "exp_labels": {case.kind: case.run, "severity": SEVERITY[alert], **each.labels},
            "exp_annotations": {"summary": each.says},
        }
        for case in cases
        for each in case.firing
        if each.alert == alert and each.since <= time and (each.until is None or time < each.until)
    ]


def run_tests(paths: Sequence[Path]) -> dict[str, str]:
    """What promtool says of each file: an empty text if all its tests pass."""
    done = subprocess.run(
        [require_tool("promtool"), "test", "rules", *(path.name for path in paths)],
        cwd=paths[0].parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = re.split(r"^Unit Testing:\s+", done.stdout, flags=re.MULTILINE)
    found = {}
    for part in told[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = "" if text.split() == ["SUCCESS"] else text
    assert found.keys() == {path.name for path in paths}, done.stdout
    return found
