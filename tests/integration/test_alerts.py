"""Each fault, caused in a real run under a real Prometheus: its alert fires, and no other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.explain.explain import explain
from pipeline.run.directory import RunDirectory
from tests.integration.faults import FAULTS, Scene, stage, wait_until_it_trains
from tests.integration.watched import GROUPS, firing, has_fired, is_named, watching
from tests.machine import DEADLINE_SECONDS, small_disk
from tests.pipeline.monitoring import Api, wait_for

DIVISOR = 10
"""Of the rules' windows: an hour is six minutes. What stands still for ten seconds rings none."""

QUIET_SECONDS = 5
"""Some scrapes, in which nothing else may fire."""


@pytest.mark.parametrize("names", GROUPS, ids=["slow", "broken"])
def test_each_fault_is_named_by_its_alert_and_no_other(
    names: Sequence[str], shards: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    with (
        small_disk(root, "4g"),  # the machine's own may be nearly full, which has its alert
        watching(root, DIVISOR) as api,
        contextlib.ExitStack() as resources,
    ):
        scenes = {name: stage(name, root, shards, resources) for name in names}
        for scene in scenes.values():
            wait_until_it_trains(scene)
        for name, scene in scenes.items():
            FAULTS[name].cause(scene)
        waiting = set(names)
        with contextlib.suppress(pytest.fail.Exception):  # what fired instead says more
            wait_for(
                lambda: not still_waiting(api, scenes, waiting), "all alerts", 2 * DEADLINE_SECONDS
            )
        time.sleep(QUIET_SECONDS)
        fired = {name: has_fired(api, scene) for name, scene in scenes.items()}
        told = {name: (firing(api, scenes[name]), explained(scenes[name])) for name in waiting}
        if "quiet" in names:
            wait_for(lambda: explained(scenes["quiet"]) is None, "nothing to explain")
    assert told == {}
    assert fired == {name: set(FAULTS[name].alerts) for name in names}


def explained(scene: Scene) -> str | None:
    """The kind of cause that `launch explain` finds for how the run is."""
    cause = explain(RunDirectory(scene.run)).cause
    return None if cause is None else cause.kind


def still_waiting(api: Api, scenes: Mapping[str, Scene], waiting: set[str]) -> set[str]:
    """The faults that no alert has named or `launch explain` has not, of those it was so for."""
    waiting -= {
        name
        for name in waiting
        if is_named(api, name, scenes[name]) and explained(scenes[name]) == FAULTS[name].kind
    }
    return waiting


def test_every_fault_is_caused_once() -> None:
    assert sorted(name for group in GROUPS for name in group) == sorted(FAULTS)
    assert len(FAULTS) == 13, "twelve, and a quiet run"
