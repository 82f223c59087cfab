"""A real Prometheus, started by our command, scrapes two real ranks and answers."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.integration.training import make_shards, ranks_of, rows, torchrun, training
from tests.pipeline.monitoring import (
    REPOSITORY,
    exporter_process,
    finish,
    free_port,
    process,
    rank_process,
    require_tool,
    wait_for,
)
from tests.pipeline.rank_process import DATA_WAIT_RATIO, LOSS, SAMPLES_PER_SECOND, TOP1

IMAGES_PER_SECOND = "sum by (run) (rate(alexnet_train_samples_total[8s]))"
DATA_WAIT = (
    'sum by (run) (rate(alexnet_step_seconds_total{phase="data_wait"}[8s]))'
    " / sum by (run) (rate(alexnet_step_seconds_total[8s]))"
)


def documented(question: str) -> str:
    """The PromQL that docs/metrics.md has for a question."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    (expression,) = re.findall(rf"^\| {question} \| `(.+)` \|$", page, re.MULTILINE)
    assert isinstance(expression, str)
    return expression


class Api:
    """Instant queries to the server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1/query?query="

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of the answer; none while the server starts."""
        try:
            with urllib.request.urlopen(self._base + urllib.parse.quote(expression)) as response:
                answer = json.load(response)
        except (urllib.error.URLError, ConnectionError):
            return []
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def value(self, expression: str) -> float:
        """The one value of the answer; NaN until there is one."""
        rows = self.query(expression)
        assert len(rows) <= 1
        return rows[0][1] if rows else float("nan")


@pytest.mark.slow
def test_prometheus_answers_for_two_ranks(tmp_path: Path) -> None:
    require_tool("prometheus")
    run = tmp_path / "run"
    run.mkdir()
    port = free_port()
    api = Api(port)
    server = ["launch", "prometheus", "--run-root", tmp_path, "--start", "--port", port]
    with (
        process(*server, "--scrape-interval", "1s"),
        exporter_process(run, "--port", 0),
        rank_process(run, 0) as leader,
        rank_process(run, 1) as victim,
    ):
        expected_rate = pytest.approx(2 * SAMPLES_PER_SECOND, rel=0.1)
        wait_for(
            lambda: api.value(IMAGES_PER_SECOND) == expected_rate,
            "the rate of two ranks over the whole window",
            60,
        )
        assert api.value(DATA_WAIT) == pytest.approx(DATA_WAIT_RATIO, rel=0.02)
        assert api.value("alexnet_train_loss") == LOSS
        assert api.value("alexnet_train_accuracy_ratio") == TOP1
        assert api.value("alexnet_global_step") > 0
        assert {labels["rank"] for labels, _ in api.query("alexnet_rank_up == 1")} == {"0", "1"}
        ((target, up),) = api.query('up{job="alexnet_train"}')
        assert (target["run"], up) == ("run", 1)

        dead, stalled = documented("dead ranks"), documented("stalled runs")
        assert api.query(dead) == api.query(stalled) == []

        victim.kill()
        wait_for(
            lambda: [row[0]["rank"] for row in api.query(dead)] == ["1"],
            "the death of rank 1",
        )
        assert [row[0]["rank"] for row in api.query("alexnet_rank_up == 1")] == ["0"]

        finish(leader)
        wait_for(lambda: len(api.query("alexnet_rank_up == 0")) == 2, "the end of rank 0")
        assert api.value("alexnet_run_success") == 1
        assert api.query(dead) == api.query(stalled) == [], "a run that is done has no dead ranks"


@pytest.mark.slow
def test_prometheus_watches_a_training_job_from_its_first_step_to_its_end(tmp_path: Path) -> None:
    require_tool("prometheus")
    shards, run, logs = make_shards(tmp_path / "shards"), tmp_path / "run", tmp_path / "logs"
    port = free_port()
    api = Api(port)
    server = ["launch", "prometheus", "--run-root", tmp_path, "--start", "--port", port]
    options = ["--epochs", 5000, "--checkpoint.every_epochs", 0, "--log_every_steps", 10]
    options += ["--evaluation.every_epochs", 20, "--metrics.exporter", "true"]
    options += ["--metrics.exporter_port", 0, "--metrics.publish_seconds", 0.2]
    options += ["--metrics.exporter_linger_seconds", 10]
    with (
        process(*server, "--scrape-interval", "1s"),
        torchrun(2, "pipeline.train", training(shards, run, *options), logs) as job,
    ):
        wait_for(lambda: api.value(IMAGES_PER_SECOND) > 0, "images a second", 120)
        wait_for(lambda: api.value('alexnet_eval_accuracy_ratio{k="1"}') >= 0, "top-1", 120)
        speeds = [row["images_per_second"] for row in rows(run, "train")]
        assert min(speeds) / 4 < api.value(IMAGES_PER_SECOND) < max(speeds) * 1.5
        losses = [row["loss"] for row in rows(run, "train")]
        assert min(losses) <= api.value("alexnet_train_loss") <= max(losses)
        assert 0 <= api.value("alexnet_train_accuracy_ratio") <= 1
        assert 0 < api.value(DATA_WAIT) < 1
        assert api.value("alexnet_world_size_ranks") == 2
        assert {labels["rank"] for labels, _ in api.query("alexnet_rank_up == 1")} == {"0", "1"}

        os.kill(ranks_of(job)[1], signal.SIGKILL)
        wait_for(
            lambda: [row[0]["rank"] for row in api.query("alexnet_rank_up == 0")] != [],
            "the death of a rank",
        )
        job.communicate(timeout=60)
        wait_for(
            lambda: {row[0]["rank"] for row in api.query("alexnet_rank_up == 0")} == {"0", "1"},
            "the end of the job",
        )
        assert api.value("alexnet_run_success") == 0
