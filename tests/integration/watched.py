"""A real Prometheus with our rules, and what it says of the runs of `tests.integration.faults`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from launch.monitoring.rules import render_rules
from launch.prometheus import server_command
from tests.integration.faults import FAULTS, Scene
from tests.pipeline.monitoring import Api, free_port, process, require_tool, wait_for

GROUPS = (
    ("quiet", "sleep in the reader", "sleep in the step", "NaN", "repeated preemption", "SIGSTOP"),
    (
        *("kill -9", "full disk", "corrupt samples", "flipped weight", "dead exporter"),
        *("stalled remote shard", "no learning"),
    ),
)
"""The faults that are caused side by side: all at once would be too much for two cores."""


@contextlib.contextmanager
def watching(root: Path, divisor: float, scrape_interval: str = "1s") -> Iterator[Api]:
    """A Prometheus that watches all runs below `root` by our configuration.

    All windows of its rules are shorter by the factor `divisor`.
    """
    prometheus = require_tool("prometheus")
    port = free_port()
    options = ["--scrape-interval", scrape_interval, "--outcomes-port", free_port()]
    with process("launch", "prometheus", "--run-root", root, *options, "--serve-outcomes"):
        for name in ("prometheus.yml", "prometheus-rules.yml"):
            wait_for((root / name).exists, name)
        (root / "prometheus-rules.yml").write_text(render_rules(divisor))
        command = server_command(root / "prometheus.yml", root / "prometheus-data", port)
        with subprocess.Popen([prometheus, *command[1:]], stderr=subprocess.DEVNULL) as server:
            try:
                yield Api(port)
            finally:
                server.terminate()


def firing(api: Api, scene: Scene) -> list[dict[str, str]]:
    """The labels of each alert of the run that fires now."""
    return api.labels(_alerts(scene))


def has_fired(api: Api, scene: Scene) -> set[str]:
    """The names of all alerts of the run that have fired."""
    return {row["alertname"] for row in api.labels(f"max_over_time({_alerts(scene)}[1d])")}


def _alerts(scene: Scene) -> str:
    return f'ALERTS{{alertstate="firing", run="{scene.run.name}"}}'


def is_named(api: Api, name: str, scene: Scene) -> bool:
    """Whether each alert of the fault fires, with its labels."""
    found = firing(api, scene)
    return all(
        any(alert["alertname"] == wanted and labels.items() <= alert.items() for alert in found)
        for wanted, labels in FAULTS[name].alerts.items()
    )
