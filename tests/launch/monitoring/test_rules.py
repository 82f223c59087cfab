"""Rules before promtool: each alert fires when it should, and no other one then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.monitoring.alerts import ALERTS
from tests.launch.monitoring.cases import CASES, Case, explained
from tests.launch.monitoring.mutants import explained_by, mutants, mutants_of_explanation
from tests.launch.monitoring.promtool import (
    Rule,
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


def render_tests(cases: Sequence[Case], alert: str, used: Sequence[Rule]) -> list[str]:
    """One for each step of the cases."""
    by_step: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_step[case.step].append(case)
    return [render_test(each, [alert], metrics_in(used)) for each in by_step.values()]


def test_each_mutant_of_a_condition_is_caught(tmp_path: Path) -> None:
    """By the cases of the alert itself, or of the first one that needs the recording rule."""
    rules, trials, tried = load_rules(), Trials(tmp_path), set()
    for alert in ALERTS:
        (rule,) = (each for each in rules if each.get("alert") == alert.name)
        rule = explained_by(rule, None)
        used = needed_by(rule, rules)
        tests = render_tests([case for case in CASES if alert.name in case.about], alert.name, used)
        trials.add(f"{alert.name} as it is", used, tests)
        for each in used:
            if name_of(each) not in tried:
                tried.add(name_of(each))
                for change, mutant in mutants(each):
                    trials.add(change, replace(used, mutant), tests)
    complaints = trials.failed()
    for alert in ALERTS:
        assert not complaints.pop(f"{alert.name} as it is")
    assert len(complaints) > 300
    survivors = [what for what, complaint in complaints.items() if not complaint]
    assert not survivors, "\n".join(survivors)


def test_an_alert_is_silent_while_another_one_explains_it(tmp_path: Path) -> None:
    """And fires in the same run if it does not know that explanation."""
    rules, trials = load_rules(), Trials(tmp_path)
    for alert, cause, case in explained():
        (rule,) = (each for each in rules if each.get("alert") == alert)
        knows = explained_by(rule, cause)
        used = needed_by(knows, rules)
        tests = render_tests([case], alert, used)
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
    tests = render_tests(cases, "CheckpointFailing", used)
    trials.add("as it is", used, tests)
    for change, mutant in mutants_of_explanation(rule):
        trials.add(change, replace(used, mutant), tests)
    complaints = trials.failed()
    assert not complaints.pop("as it is")
    survivors = [what for what, complaint in complaints.items() if not complaint]
    assert len(complaints) > 8
    assert not survivors, "\n".join(survivors)
