"""The dashboards: their structure, their names, and that a Prometheus answers their questions.

There is no Grafana here: that it draws them is not tested.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.shard_set.metric import Metric
from launch.__main__ import main
from launch.monitoring.dashboards import render_dashboards
from pipeline.metrics.tables import ALL_METRICS
from tests.launch.monitoring.declared import wrong_names
from tests.launch.monitoring.questions import answered, queries_of
from tests.pipeline.monitoring import Api, free_port, process, require_tool, wait_for

DASHBOARDS = {name: json.loads(text) for name, text in render_dashboards().items()}
PANELS = [
    pytest.param(dashboard, panel, id=f"{name.removesuffix('.json')}, {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
UNITS = {
    *("none", "short", "s", "bytes", "Bps", "percentunit", "sci", "watt", "joule"),
    *("suffix: images/s", "suffix: batches"),
}
"""Of Grafana's units, those that are used; `suffix:` is one's own."""


def test_there_are_six_with_what_an_import_needs() -> None:
    assert len(DASHBOARDS) == 6
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 6
    for name, dashboard in DASHBOARDS.items():
        assert dashboard["schemaVersion"] == 42
        assert f"{dashboard['uid']}.json" == name
        (source,) = dashboard["__inputs"]
        assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
        required = {(each["type"], each["id"]) for each in dashboard["__requires"]}
        kinds = {("panel", panel["type"]) for panel in dashboard["panels"]}
        assert required == {("grafana", "grafana"), ("datasource", "prometheus")} | kinds
        assert "id" not in dashboard, "Grafana gives it"
        json.dumps(dashboard, allow_nan=False)


def test_each_has_variables_and_marks_of_resumes_and_checkpoints() -> None:
    for name, dashboard in DASHBOARDS.items():
        first, *others = dashboard["templating"]["list"]
        assert (first["name"], first["type"], first["query"]) == (
            *("datasource", "datasource"),
            "prometheus",
        )
        is_of_runs = name != "alexnet-conversion.json"
        expected = ["run", "node", "rank"] if is_of_runs else ["conversion"]
        assert [variable["name"] for variable in others] == expected
        assert all(each["multi"] and each["includeAll"] for each in others)
        marks = [mark["name"] for mark in dashboard["annotations"]["list"]]
        assert marks == (["Resumes", "Checkpoints"] if is_of_runs else [])


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_says_what_it_shows_in_which_unit(
    dashboard: dict[str, Any], panel: dict[str, Any]
) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert len(panel["description"]) > 20
    assert [panel["title"] for panel in dashboard["panels"]].count(panel["title"]) == 1
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    assert [
        other["id"]
        for other in dashboard["panels"]
        if (other["gridPos"]["x"], other["gridPos"]["y"]) == (place["x"], place["y"])
    ] == [panel["id"]]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["expr"].count("(") == target["expr"].count(")")


def test_they_name_what_is_declared() -> None:
    for query in queries_of(DASHBOARDS):
        assert not wrong_names(query), query


def test_each_metric_of_ranks_and_the_job_is_on_some_dashboard_or_named_here() -> None:
    """So that a new one is not forgotten."""
    asked = " ".join(queries_of(DASHBOARDS))
    missing = {
        metric.name
        for metric in ALL_METRICS
        if not any(f"{name}{{" in asked for name in metric.series_names)
    }
    assert missing == {
        "alexnet_checkpoint_bytes",
        "alexnet_checkpoint_last_step",
        "alexnet_checkpoints_total",
        "alexnet_eval_expected_samples",
        "alexnet_eval_last_success_timestamp_seconds",
        "alexnet_eval_samples",
        "alexnet_exporter_info",
        "alexnet_global_step",
        "alexnet_heartbeat_timestamp_seconds",
        "alexnet_last_step_timestamp_seconds",  # in a recording rule, as the next two
        "alexnet_run_seconds_total",
        "alexnet_train_samples_total",
        "alexnet_preempt_signals_total",
        "alexnet_run_duration_seconds",
        "alexnet_run_end_timestamp_seconds",
    }


def test_the_command_writes_them_and_replaces_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grafana"
    words = ["prometheus", "--run-root", str(tmp_path), "--dashboards", str(folder)]
    assert main(words) == 1
    assert "grafana is not a directory: give another --dashboards" in capsys.readouterr().err
    assert not (tmp_path / "prometheus.yml").exists()
    folder.mkdir()
    assert main(words) == main(words) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == render_dashboards()
    (folder / "alexnet-run.json").write_text("{\n}\n")
    assert main(words) == 1
    assert "was not written by this command" in capsys.readouterr().err
    assert (folder / "alexnet-run.json").read_text() == "{\n}\n"


@pytest.mark.slow
def test_prometheus_answers_all_of_them_where_all_that_is_declared_is_published(
    tmp_path: Path,
) -> None:
    """Those, too, that need a GPU, fp16, a conversion or an alert: here by a stand-in."""
    require_tool("prometheus")
    port = free_port()
    server = ["launch", "prometheus", "--run-root", tmp_path, "--start", "--port", port]
    with StandIn() as stand_in:
        targets = tmp_path / "prometheus-targets"
        targets.mkdir()
        labels = {"run": "run", "run_dir": "/run", "node": "node"}
        entry = [{"targets": [f"127.0.0.1:{stand_in.server_port}"], "labels": labels}]
        (targets / "run-node.json").write_text(json.dumps(entry))
        threading.Thread(target=stand_in.serve_forever, daemon=True).start()
        with process(*server, "--scrape-interval", "1s", "--divide-rule-times", "20"):
            questions = queries_of(DASHBOARDS)
            assert len(questions) > 60
            api = Api(port)
            unanswered = set(questions)

            def all_are_answered() -> bool:
                unanswered.difference_update(answered(api, sorted(unanswered)))
                return not unanswered

            wait_for(all_are_answered, "an answer to each question")
        stand_in.shutdown()


class StandIn(ThreadingHTTPServer):
    """Publishes a series of each declared metric for each value of its labels.

    Counters rise with each scrape; all else is 1.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.num_scrapes = 0


class _Page(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.num_scrapes += 1
        lines = (
            line for metric in ALL_METRICS for line in _samples(metric, self.server.num_scrapes)
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write("".join(lines).encode())

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no news."""


def _samples(metric: Metric, count: int) -> Iterator[str]:
    yield f"# TYPE {metric.name} {metric.prometheus_kind}\n"
    buckets = [str(bound) for bound in metric.buckets] + ["+Inf"]
    for name in metric.series_names:
        labels = {"le": buckets} if name.endswith("_bucket") else metric.labels
        sets: list[list[str]] = [[]]
        for label, values in labels.items():
            sets = [[*done, f'{label}="{value}"'] for done in sets for value in values or ["0"]]
        for each in sets:
            rises = metric.kind in ("counter", "histogram")
            yield f"{name}{{{','.join(each)}}} {count if rises else 1}\n"
