"""Jobs on a real SLURM of two nodes: submitted, interrupted in every way, and gone on with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import Cluster, require_slurm, run_cluster
from tests.integration.training import (
    rows,
)

pytestmark = pytest.mark.slow

RANKS = ("--gpus-per-node", 0, "--ranks-per-node", 2, "--cpus-per-task", 2)
ENVIRONMENT = ("--python", sys.executable)


@pytest.fixture(scope="module")
def machine() -> Iterator[Cluster]:
    require_slurm()
    with run_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(machine: Cluster) -> Iterator[Cluster]:
    """With no jobs, before and after."""
    yield machine
    machine.cancel_all()


def jobs_of(output: str) -> list[str]:
    """The numbers of the jobs that `launch slurm` says it has submitted."""
    return re.findall(r": job (\d+)", output)


def test_a_chain_prepares_merges_and_trains(cluster: Cluster, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "runs/first"
    sizes = ("--num-train", 200, "--num-val", 53, "--samples-per-shard", 40)
    output = cluster.launch(
        *("slurm", "chain", "--nodes", 2, "--array-size", 4, "--time", "0:05:00", *RANKS),
        *("--signal-lead", 60, *ENVIRONMENT),
        *("synthetic", "--output", shards, *sizes),
        *("--", "cifar10", "--run-dir", run, "--global_batch_size", 24, "--epochs", 1),
    )
    preparing, merging, training_job = jobs_of(output)
    assert cluster.wait_for_state(training_job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED"
    assert cluster.state(preparing) == cluster.state(merging) == "COMPLETED"
    assert rows(run, "end")[-1]["outcome"] == "completed"
    assert rows(run, "run")[0]["world_size"] == 4
