"""Rules and dashboards name what is declared, and the documents say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.monitoring.alerts import ALERTS, Alert
from launch.monitoring.records import RECORDS
from launch.monitoring.rules import render_query, render_rules
from pipeline.config.schema import FIELDS, is_operational
from tests.integration.test_prometheus import questions
from tests.launch.monitoring.declared import wrong_names
from tests.pipeline.monitoring import REPOSITORY, require_tool

RUNBOOK = (REPOSITORY / "docs" / "alerts.md").read_text()


@pytest.mark.parametrize("divide_by", [1, 20, 60])
def test_promtool_takes_the_rules(divide_by: float, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(render_rules(divide_by))
    check = subprocess.run(
        [require_tool("promtool"), "check", "rules", rules], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in check.stdout


def test_durations_are_divided_wherever_they_are() -> None:
    query = "rate(alexnet_x:rate1m[5m]) + y offset 1h > 3m and max_over_time(z[=5m]) > 0.02"
    assert render_query(query) == query.replace("> 3m", "> 180").replace("[=5m]", "[5m]")
    assert render_query(query, 20) == (
        "rate(alexnet_x:rate1m[15000ms]) + y offset 180000ms > 9 and max_over_time(z[5m]) > 0.02"
    )


def test_every_alert_has_its_paragraph_and_no_other_has_one() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        paragraph = RUNBOOK.partition(f"## {alert.name}\n")[2].partition("\n## ")[0]
        for word in ("Means", "Look at", "Do"):
            assert paragraph.count(f"**{word}:** ") == 1, alert.name
        assert alert.runbook == f"docs/alerts.md#{alert.name.lower()}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_what_a_paragraph_says_to_do_can_be_done(alert: Alert) -> None:
    """A resumed run takes no other value of most options: then it has to be another run."""
    paragraph = RUNBOOK.partition(f"## {alert.name}\n")[2].partition("\n## ")[0]
    to_do = paragraph.partition("**Do:** ")[2]
    fields = [name for name in re.findall(r"`--([\w.]+)", to_do) if name in FIELDS]
    if not all(map(is_operational, fields)):
        assert re.search("fork|begin again|next run", to_do)
    for command in re.findall(r"`python -m (data_prep verify[^`]*)`", paragraph):
        words = [sys.executable, "-m", *command.split()]
        found = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
        assert "SHARDS is not a shard set" in found.stderr, "the command is understood"


def test_an_alert_comes_after_those_that_explain_it() -> None:
    """Else it would fire once, before Prometheus has evaluated them."""
    names = [alert.name for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        for cause in alert.yields_to:
            assert names.index(cause) < names.index(alert.name), (alert.name, cause)


def test_rules_name_what_is_declared() -> None:
    for each in (*RECORDS, *ALERTS):
        assert not wrong_names(render_query(each.query)), each.name


def test_what_is_not_declared_is_found() -> None:
    assert wrong_names("alexnet_no_such_metric") == ["alexnet_no_such_metric"]
    assert wrong_names('alexnet_rank_up{node="n1", phase="h2d"}') == ["alexnet_rank_up{phase}"]
    assert wrong_names('alexnet_step_seconds_total{phase=~"h2d|idle"}') == ["phase=idle"]
    assert wrong_names("alexnet:no_such_rule") == ["alexnet:no_such_rule"]
    assert wrong_names("sum by (run, colour) (alexnet_rank_up)") == ["colour"]


def test_the_questions_of_the_documents_agree_with_the_recording_rules() -> None:
    asked = dict(questions())
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(alexnet:[^`]+)` \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(record.name, record.meaning) for record in RECORDS]
    same = [record for record in RECORDS if record.meaning in asked]
    assert len(same) == 2
    for record in same:
        assert asked[record.meaning] == record.query
