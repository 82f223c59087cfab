"""Rules before promtool: each alert fires when it should, and no other one then."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.monitoring.alerts import ALERTS
from tests.hostile import TEXTS
from tests.launch.monitoring.cases import CASES, Case, explained
from tests.launch.monitoring.mutants import (
    Mutant,
    explained_by,
    mutants,
    mutants_of_explanation,
    with_change,
)
from tests.launch.monitoring.promtool import (
    Rule,
    load_all,
    load_rules,
    metrics_in,
    name_of,
    needed_by,
    render_test,
    replace,
    run_tests,
    write_test,
)

pytestmark = pytest.mark.slow

UNCHANGED = "as it is"


def test_each_case_fires_its_alerts_at_their_time_and_no_other(tmp_path: Path) -> None:
    tests = []
    for step in sorted({case.step for case in CASES}):
        tests.append(tmp_path / f"test-{step}.json")
        cases = [case for case in CASES if case.step == step]
        write_test(tests[-1], load_rules(), render_test(cases, [alert.name for alert in ALERTS]))
    for name, complaint in run_tests(tests).items():
        assert not complaint, f"{name}: {complaint}"


class Trials:
    """Rules and their tests, to be put to promtool all at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whats: dict[str, str] = {}

    def add(self, what: str, rules: Sequence[Rule], tests: Sequence[str]) -> None:
        for test in tests:
            path = self._folder / f"{len(self._whats)}.json"
            write_test(path, rules, test)
            self._whats[path.name] = what

    def failed(self) -> dict[str, str]:
        """What failed, with the first complaint; an empty one for what passed."""
        found: dict[str, str] = {}
        for name, complaint in run_tests([self._folder / name for name in self._whats]).items():
            what = self._whats[name]
            found[what] = found.get(what) or complaint
        return found


def render_tests(cases: Sequence[Case], alerts: Sequence[str], used: Sequence[Rule]) -> list[str]:
    """One for each step of the cases."""
    by_step: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_step[case.step].append(case)
    return [render_test(each, alerts, metrics_in(used)) for each in by_step.values()]


def test_each_mutant_of_a_condition_is_caught(tmp_path: Path) -> None:
    """By the cases of the alert itself, or of the first one that needs the recording rule.

    All mutants that an alert finds are evaluated beside it, each under a name of its own.
    """
    rules, tried, paths = load_rules(), set[str](), list[Path]()
    changes: dict[str, str] = {}
    for alert in ALERTS:
        (rule,) = (each for each in rules if each.get("alert") == alert.name)
        used = needed_by(explained_by(rule, None), rules)
        new = [each for each in used if name_of(each) not in tried]
        tried.update(map(name_of, new))
        found = {
            f"{alert.name} {number}": mutant
            for number, mutant in enumerate(
                mutant for each in new for mutant in (Mutant(UNCHANGED, each), *mutants(each))
            )
        }
        changes |= {name: mutant.change for name, mutant in found.items()}
        beside = [
            each for name, mutant in found.items() for each in with_change(mutant, used, name)
        ]
        cases = [case for case in CASES if alert.name in case.about]
        for test in render_tests(cases, [alert.name, *found], used):
            paths.append(tmp_path / f"{len(paths)}.json")
            write_test(paths[-1], [*used, *beside], test)
    complaints = "".join(run_tests(paths).values())
    caught = set(re.findall(r"alertname: ([^,]+), time", complaints))
    assert len(changes) > 300
    survivors = {change for name, change in changes.items() if name not in caught}
    assert survivors == {UNCHANGED}
    as_they_are = {name for name, change in changes.items() if change == UNCHANGED}
    assert caught.isdisjoint(as_they_are)


def test_an_alert_is_silent_while_another_one_explains_it(tmp_path: Path) -> None:
    """And fires in the same run if it does not know that explanation."""
    rules, trials = load_rules(), Trials(tmp_path)
    for alert, cause, case in explained():
        (rule,) = (each for each in rules if each.get("alert") == alert)
        knows = explained_by(rule, cause)
        used = needed_by(knows, rules)
        tests = render_tests([case], [alert], used)
        trials.add(f"{alert} knows of {cause}", used, tests)
        trials.add(f"{alert} explained by {cause}", replace(used, explained_by(rule, None)), tests)
    complaints = trials.failed()
    assert len(complaints) > 60
    for what, complaint in complaints.items():
        assert (complaint == "") == (" knows of " in what), f"{what}: {complaint}"


def test_each_mutant_of_an_explanation_is_caught(tmp_path: Path) -> None:
    """Of one alert: how long it yields, and that it does so only to what fires."""
    rules, trials = load_rules(), Trials(tmp_path)
    (rule,) = (each for each in rules if each.get("alert") == "CheckpointFailing")
    used = needed_by(rule, rules)
    cases = [case for case in CASES if case.run.startswith("no-checkpoint")]
    tests = render_tests(cases, ["CheckpointFailing"], used)
    trials.add("as it is", used, tests)
    for change, mutant in mutants_of_explanation(rule):
        trials.add(change, replace(used, mutant), tests)
    complaints = trials.failed()
    assert not complaints.pop("as it is")
    survivors = [what for what, complaint in complaints.items() if not complaint]
    assert len(complaints) > 8
    assert not survivors, "\n".join(survivors)


def test_the_description_says_who_and_why(tmp_path: Path) -> None:
    """Cases know no descriptions, so promtool complains, and with that says what it has got."""
    rules, trials = load_all(), Trials(tmp_path)
    wanted = {}
    for alert in ALERTS:
        case, fires = next(
            (case, each) for case in CASES for each in case.firing if each.alert == alert.name
        )
        (rule,) = (each for each in rules if each.get("alert") == alert.name)
        used = needed_by(rule, rules)
        trials.add(alert.name, used, render_tests([case], [alert.name], used))
        wanted[alert.name] = [case.run, *fires.labels.values()]
    complaints = trials.failed()
    for alert in ALERTS:
        _, _, got = complaints[alert.name].partition("got:[")
        assert f'runbook_url="{alert.runbook}"' in got
        assert not re.search(r"<error|<no value>|%!", got), got
        _, _, annotations = got.partition("Annotations:")
        missing = [word for word in wanted[alert.name] if word not in annotations]
        assert missing in ([], ["rank"]), f"{alert.name}: {missing} not in {got}"


def test_names_in_labels_stay_text(tmp_path: Path) -> None:
    """Also in the question that the description asks: no name ends it, or is a template itself."""
    rules, path = load_all(), tmp_path / "names.json"
    (rule,) = (each for each in rules if each.get("alert") == "HangSuspected")
    metrics = {
        "alexnet_rank_up{%s}": 0,
        'alexnet_rank_phase{%s,phase="reading"}': 1,
        'alexnet_rank_outcome{%s,outcome="running",run_dir="/"}': 1,
        'alexnet_run_outcome{%s,outcome="running"}': 1,
    }
    quoted = [json.dumps(name, ensure_ascii=False) for name in TEXTS.values()]
    series = [
        {"series": metric % f'run={name},node={name},rank="0"', "values": f"{value}+0x30"}
        for metric, value in metrics.items()
        for name in quoted
    ]
    description = rule["annotations"]["description"].partition("{{")[0]
    texts = {"description": f"{description} When it last spoke it was reading."}
    fired = [
        {
            "exp_labels": {"run": name, "node": name, "rank": "0", "severity": "critical"},
            "exp_annotations": rule["annotations"]
            | {"summary": f"run {name}: rank 0 on {name} is there, but publishes nothing"}
            | texts,
        }
        for name in TEXTS.values()
    ]
    check = {"eval_time": "20m", "alertname": "HangSuspected", "exp_alerts": fired}
    tests = [{"interval": "60s", "input_series": series, "alert_rule_test": [check]}]
    write_test(path, needed_by(rule, rules), json.dumps({"tests": tests}))
    assert run_tests([path]) == {path.name: ""}
