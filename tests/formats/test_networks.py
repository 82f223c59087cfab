"""Checkpoints of every network, optimizer and layout: today's commands go on from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.formats import states
from tests.formats.fixtures import NETWORKS, RUN_SHARDS, SMALL, SPLIT
from tests.pipeline.rank_jobs import Job

pytestmark = pytest.mark.slow


def begun_run(version: Path, name: str, shards: Path, run: Path) -> dict[str, Any]:
    """A run whose first step is done, as `networks.json` describes it; returns its state."""
    saved = json.loads((version / "networks.json").read_bytes())[name]
    manifest_sha256 = states.file_sha256(shards / "_info.json")
    run.mkdir()
    config = saved["config"] | {"manifest_sha256": manifest_sha256}
    (run / "config.json").write_text(json.dumps(config))
    state: dict[str, Any] = states.filled(saved["state"])
    settings = json.loads(state["settings"]) | {"manifest_sha256": manifest_sha256}
    state["settings"] = json.dumps(settings)
    states.save(run / "checkpoints/step-00000001", 1, state)
    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_is_gone_on_from(version: Path, name: str, large: Path, scratch: Path) -> None:
    shards = version / "shards" / RUN_SHARDS if name.startswith(SMALL) else large
    run = scratch / "run"
    before = begun_run(version, name, shards, run)
    size, layout = (2, ["--model.columns", "split"]) if name == SPLIT else (1, [])
    words = [*NETWORKS[name], "--data.shards", shards, "--run-dir", run, "--max-steps", 2]
    words += ["--checkpoint.keep", 1, *layout]
    with Job(size, "pipeline.train", words) as job:
        assert job.wait() == [0] * size, job.errors
    assert f"resumed from {run}/checkpoints/step-00000001" in job.outputs[0]
    after = states.load(states.newest(run))
    assert states.names_and_types(after) == states.names_and_types(before)
    assert after["progress"]["step"] == 2
    biases = [key for key in before["model"] if key.endswith("bias")]
    assert any(not before["model"][key].equal(after["model"][key]) for key in biases)
