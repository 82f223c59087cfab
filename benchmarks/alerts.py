"""How long each fault takes to be told: from its cause in a real run to the alert of Prometheus.

    python -m benchmarks.alerts [--divide-by 1] [--scrape-interval 15s] [--json PATH]

The faults are those of `tests/integration/faults.py`, twelve and a quiet run, caused side by side
in two groups of runs on this machine. The rules have their full windows, unless they are divided:
then the figures are those of shorter ones. Beside the seconds it says which alerts fired.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import parser, report
from tests.integration.faults import FAULTS, Scene, stage, wait_until_it_trains
from tests.integration.training import make_shards
from tests.integration.watched import GROUPS, has_fired, is_named, watching
from tests.pipeline.monitoring import Api

_DEADLINE_SECONDS = 3600.0

_AFTERWARDS_SECONDS = 300.0
"""In which no other alert may fire."""

_STEP_SECONDS = 1.0
"""What ranks sleep in each step: the windows are long, and the runs share this machine."""

_PUBLISH_SECONDS = 0.5
"""A quarter of the default."""


def measure(
    names: Sequence[str], folder: Path, shards: Path, divisor: float, interval: str
) -> dict[str, Any]:
    """Cause the faults of `names`, and wait until each is named, or for an hour."""
    root = folder / "runs"
    root.mkdir(parents=True)
    with watching(root, divisor, interval) as api, contextlib.ExitStack() as resources:
        scenes = {
            name: stage(name, root, shards, resources, _STEP_SECONDS, _PUBLISH_SECONDS)
            for name in names
        }
        for scene in scenes.values():
            wait_until_it_trains(scene)
        causes = {}
        for name, scene in scenes.items():
            causes[name] = time.monotonic()
            FAULTS[name].cause(scene)
        told = _wait(api, scenes)
        time.sleep(_AFTERWARDS_SECONDS / divisor)
        return {
            name: {
                "seconds_to_alert": round(told[name] - causes[name], 1) if name in told else None,
                "alerts": sorted(has_fired(api, scene)),
                "expected": sorted(FAULTS[name].alerts),
            }
            for name, scene in scenes.items()
        }


def _wait(api: Api, scenes: dict[str, Scene]) -> dict[str, float]:
    """When each fault was named, by the monotonic clock."""
    told: dict[str, float] = {}
    waiting = {name for name in scenes if FAULTS[name].alerts}
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while waiting and time.monotonic() < deadline:
        for name in sorted(waiting):
            if is_named(api, name, scenes[name]):
                told[name] = time.monotonic()
                print(f"{name} is told", file=sys.stderr)
                waiting.remove(name)
        time.sleep(0.2)
    return told


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--divide-by", type=float, default=1.0, help="makes all windows shorter")
    options.add_argument("--scrape-interval", default="15s")
    chosen = options.parse_args()
    faults: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder, "shards"))
        for number, names in enumerate(GROUPS):
            place = Path(folder, str(number))
            faults |= measure(names, place, shards, chosen.divide_by, chosen.scrape_interval)
    figures = {
        "benchmark": "alerts",
        "divisor_of_windows": chosen.divide_by,
        "scrape_interval": chosen.scrape_interval,
        "faults": faults,
    }
    report(figures, chosen.json)


if __name__ == "__main__":
    main()
