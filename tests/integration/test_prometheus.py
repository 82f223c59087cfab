"""A real Prometheus, started by our command, scrapes two real rank processes and answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.pipeline.monitoring import (
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

        victim.kill()
        wait_for(
            lambda: [row[0]["rank"] for row in api.query("alexnet_rank_up == 0")] == ["1"],
            "the death of rank 1",
        )
        assert [row[0]["rank"] for row in api.query("alexnet_rank_up == 1")] == ["0"]

        finish(leader)
        wait_for(lambda: api.value("alexnet_run_success") == 1, "the last values")
