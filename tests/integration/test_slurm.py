"""Jobs on a real SLURM of two nodes: submitted, interrupted in every way, and gone on with."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.metrics.outcomes import RootOutcomes
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import read_rows
from pipeline.run.ledger import ledger_of
from tests.integration.slurm_cluster import Cluster, require_slurm, run_cluster
from tests.integration.training import all_rows, assert_same_state, rows, training
from tests.pipeline.monitoring import entry_of, require_tool, served, wait_for

SPEC = (
    *("--gpus-per-node", 0, "--ranks-per-node", 2, "--cpus-per-task", 2),
    *("--python", sys.executable, "--signal-lead", 60, "--time", "0:20:00"),
)
"""Ranks on CPUs; two such jobs fit on a node."""

LONG = (
    *("--epochs", 120, "--evaluation.every_epochs", 20, "--checkpoint.every_epochs", 5),
    *("--distributed.timeout_seconds", 60),
)
"""A run of 960 steps, with so long between two saves that each interruption costs steps."""

ENDLESS = (*LONG, "--epochs", 100_000)

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


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


@pytest.fixture(scope="module")
def undisturbed(machine: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `LONG` on two nodes."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = train(machine, shards, run, *LONG)
    assert machine.wait_for_state(job, *ENDED) == "COMPLETED", log_of(run, job)
    return run


def train(cluster: Cluster, shards: Path, run: Path, *options: object, nodes: int = 2) -> str:
    """Submit a training; returns the number of its job."""
    spec = ("--nodes", nodes, *SPEC)
    return jobs_of(cluster.launch("slurm", "train", *spec, *training(shards, run, *options)))[0]


def jobs_of(output: str) -> list[str]:
    """The numbers of the jobs that `launch slurm` says it has submitted."""
    return re.findall(r": job (\d+)", output)


def log_of(run: Path, job: str) -> str:
    return (RunDirectory(run).logs / f"slurm-{job}.log").read_text()


def has_trained(run: Path, start: int, num_steps: int = 5) -> bool:
    """Whether the ranks have done some steps since they began for the `start`-th time."""
    kinds = [row["kind"] for row in all_rows(run)]
    begins = [place for place, kind in enumerate(kinds) if kind == "run"]
    return len(begins) >= start and kinds[begins[start - 1] :].count("train") >= num_steps


def preempt(cluster: Cluster, nodes: int, seconds: int = 1) -> str:
    """By a job that takes so long; returns its number."""
    urgent = ("--partition=urgent", f"--nodes={nodes}", "--exclusive", "--output=/dev/null")
    return cluster.run("sbatch", "--parsable", *urgent, f"--wrap=sleep {seconds}").strip()


def test_a_chain_prepares_merges_and_trains(cluster: Cluster, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "runs/first"
    sizes = ("--num-train", 200, "--num-val", 53, "--samples-per-shard", 40)
    output = cluster.launch(
        *("slurm", "chain", "--nodes", 2, "--array-size", 4, *SPEC),
        *("synthetic", "--output", shards, *sizes),
        *("--", "cifar10", "--run-dir", run, "--global_batch_size", 24, "--epochs", 1),
    )
    preparing, merging, last = jobs_of(output)
    assert cluster.wait_for_state(last, *ENDED) == "COMPLETED", log_of(run, last)
    assert cluster.state(preparing) == cluster.state(merging) == "COMPLETED"
    assert rows(run, "run")[0]["world_size"] == 4
    assert f"{run}: completed" in log_of(run, last)
    assert "completed" in cluster.launch("status", run)
    submitted, started, *_ = all_rows(run)
    assert (submitted["kind"], submitted["to"], submitted["job"]) == ("submit", "slurm", last)
    ledger = ledger_of(read_rows(RunDirectory(run).events))
    assert ledger is not None
    assert ledger.is_queue_known
    assert ledger.seconds["queued"] == started["began"] - submitted["time"] > 0
    assert ledger.seconds["starting"] >= started["time"] - started["began"]
    wait_for(
        lambda: not any(cluster.pids(node, "pipeline.exporter") for node in cluster.nodes),
        "the end of the exporters, which linger elsewhere",
    )
    outcomes = RootOutcomes(run.parent, "head")
    assert served(outcomes, "alexnet_run_outcome") == {("first",): "completed"}
    assert set(served(outcomes, "alexnet_rank_outcome").values()) == {"completed"}
    nodes = sorted(node for _, node, *_ in served(outcomes, "alexnet_rank_outcome"))
    assert nodes == sorted([*cluster.nodes, *cluster.nodes])


APPTAINER = """#!/bin/bash
printf '%s\\n' "$*" >> "$0.log"
[ "$1 $2 $3" = "exec --nv --bind" ] || exit 1
shift 5 # those, the folders and the image; like apptainer, it becomes the command
exec "$@"
"""


def test_a_container_has_all_that_runs_python(cluster: Cluster, tmp_path: Path) -> None:
    """By a stand-in for apptainer: a container cannot be run in these namespaces."""
    (tmp_path / "bin").mkdir()
    apptainer = tmp_path / "bin/apptainer"
    apptainer.write_text(APPTAINER)
    apptainer.chmod(0o755)
    shards, run = tmp_path / "shards", tmp_path / "run"
    image = ("--container", "my.sif", "--container-mounts", f"/opt,{tmp_path}")
    words = (
        *("slurm", "chain", "--nodes", 2, "--array-size", 1, *SPEC, *image, "--doctor"),
        *("synthetic", "--output", shards, "--num-train", 100, "--num-val", 20),
        *("--", "cifar10", "--run-dir", run, "--global_batch_size", 24, "--epochs", 1),
    )
    path = f"{apptainer.parent}:{os.environ['PATH']}"
    output = cluster.run(sys.executable, "-m", "launch", *words, PATH=path)
    *_, last = jobs_of(output)
    assert cluster.wait_for_state(last, *ENDED) == "COMPLETED", log_of(run, last)
    begin = f"exec --nv --bind /opt,{tmp_path} my.sif {sys.executable} -m "
    calls = apptainer.with_suffix(".log").read_text().splitlines()
    assert all(call.startswith(begin) for call in calls)
    modules = [" ".join(call.removeprefix(begin).split()[:2]) for call in calls]
    assert modules[:2] == ["data_prep shard", "data_prep merge"]
    # On each node for the doctor and for the training, and once to say how the job ended.
    assert modules[2:] == ["pipeline.start_ranks --nnodes=2"] * 4 + ["launch outcome"]


def make_folder(path: Path) -> None:
    """Images of two classes in two splits."""
    for number in range(80):
        split = "val" if number % 5 == 0 else "train"
        image = path / split / f"class-{number % 2}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (number, 100, 200)).save(image)


def test_the_committed_scripts_work_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    """On the GPUs that the job gets, which here are none: the recipe says so."""
    images, shards, run = (tmp_path / name for name in ("images", "shards", "run"))
    make_folder(images)
    named = {"PYTHON": sys.executable, "SHARDS": str(shards), "RUN": str(run)}
    output = (f"--output={tmp_path}/%A.log", "--cpus-per-task=2", "--parsable")
    preparing = cluster.run(
        *("sbatch", *output, "--array=0-1", "slurm/prepare.sbatch", "--size", 32),
        **named | {"SOURCE": "folder", "INPUT": str(images)},
    ).strip()
    assert cluster.wait_for_state(preparing, *ENDED) == "COMPLETED"
    cluster.run(sys.executable, "-m", "data_prep", "merge", shards)
    training = cluster.run(
        *("sbatch", *output, "--gpus-per-node=2", "slurm/train.sbatch"),
        *("--global_batch_size", 16, "--epochs", 1, "--distributed.device", "cpu"),
        **named | {"RECIPE": "cifar10"},
    ).strip()
    log = tmp_path / f"{training}.log"
    assert cluster.wait_for_state(training, *ENDED) == "COMPLETED", log.read_text()
    assert f"{run}: completed" in log.read_text()
    assert [row["world_size"] for row in rows(run, "run")] == [2]


def test_a_run_interrupted_in_every_way_is_that_of_one_left_alone(
    cluster: Cluster, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One after the other, on one run, and no step is lost.

    Each is answered with a start, but `scancel` only when somebody submits the run again.
    """
    run = tmp_path / "run"
    job = train(cluster, shards, run, *LONG)

    def wait_for_start(number: int) -> None:
        wait_for(lambda: has_trained(run, number), f"start {number}")

    wait_for_start(1)
    cluster.run("scancel", job)
    assert cluster.wait_for_state(job, *ENDED) == "CANCELLED"
    wait_for(lambda: bool(rows(run, "end")), "the end")
    (signal,), (save,) = rows(run, "signal"), rows(run, "checkpoint")[-1:]
    assert (signal["source"], save["reason"]) == ("SIGTERM", "preempt")
    assert signal["step"] == save["step"]
    job = train(cluster, shards, run, *LONG)
    wait_for_start(2)
    assert rows(run, "run")[-1]["resumed_from"] == save["step"]
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # as --signal=B:USR1@60 does
    wait_for_start(3)
    cluster.run("scontrol", "requeue", job)
    wait_for_start(4)
    preempt(cluster, nodes=2)
    wait_for_start(5)
    _, node = cluster.nodes
    cluster.run("kill", "-9", cluster.pids(node, "pipeline.train")[-1], node=node)
    wait_for_start(6)
    cluster.crash(node)
    cluster.wait_for_state(job, "PENDING")
    cluster.boot(node)
    assert cluster.wait_for_state(job, *ENDED) == "COMPLETED", log_of(run, job)
    assert_same_state(run, undisturbed)
    submitted = [row["job"] for row in all_rows(run) if row["kind"] == "submit"]
    assert submitted.count(job) >= 4, "once by somebody, then by SLURM"
    ledger = ledger_of(read_rows(RunDirectory(run).events))
    assert ledger is not None
    assert ledger.num_attempts >= 6
    assert ledger.seconds["queued"] > ledger.seconds["down"] > 0


def test_a_job_whose_former_ranks_are_still_at_work_takes_over_from_them(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """A node's slurmd dies alone: SLURM takes the node for down, and its ranks train on."""
    run = tmp_path / "run"
    job = train(cluster, shards, run, *ENDLESS, nodes=1)
    wait_for(lambda: has_trained(run, 1), "training")
    node = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    try:
        cluster.run("pkill", "--signal=KILL", "--exact", "slurmd", node=node)
        wait_for(lambda: has_trained(run, 2), "training on the other node")
    finally:
        cluster.crash(node)
        cluster.boot(node)
    (signal,), (first, second) = rows(run, "signal"), rows(run, "run")
    assert signal["source"] == "STOP file"
    assert second["resumed_from"] == signal["step"] > first["step"]
    assert cluster.state(job) == "RUNNING", "it is not the one that was to stop"


def test_a_signal_that_finds_the_ranks_still_starting_costs_nothing_but_a_start(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """In the doctor, too, and in a preemption of which SLURM tells the ranks alone."""
    run = tmp_path / "run"
    spec = ("--nodes", 2, *SPEC, "--doctor", "--partition", "graceful")
    (job,) = jobs_of(
        cluster.launch("slurm", "train", *spec, *training(shards, run, *LONG, "--epochs", 40))
    )

    def wait_for_process(words: str) -> None:
        wait_for(lambda: bool(cluster.pids(cluster.nodes[0], words)), words)

    def wait_for_start(number: int) -> None:
        begin = f"job {job}, start {number},"
        wait_for(lambda: begin in log_of(run, job), begin)

    wait_for_start(1)
    wait_for_process("pipeline.doctor")
    cluster.run("scancel", "--signal=USR2", "--batch", job)
    wait_for_start(2)
    wait_for_process("pipeline.train")
    cluster.run("scancel", "--signal=USR2", "--batch", job)
    wait_for_start(3)
    wait_for_process("pipeline.train")
    preempt(cluster, nodes=2)
    assert cluster.wait_for_state(job, *ENDED) == "COMPLETED", log_of(run, job)
    assert cluster.num_starts(job) == 4
    # One that came so late that they had begun has saved what they had done.
    asked = [row["step"] for row in all_rows(run) if row["kind"] == "signal"]
    assert [row["resumed_from"] for row in rows(run, "run")] == [None, *asked]


def test_two_jobs_on_the_same_nodes_do_not_meet(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """On one node each, and on both at a time."""
    for nodes in (1, 2):
        runs = [tmp_path / f"{name}-{nodes}" for name in ("one", "other")]
        jobs = [train(cluster, shards, run, *ENDLESS, nodes=nodes) for run in runs]
        for run in runs:
            wait_for(lambda: has_trained(run, 1), "training")  # noqa: B023
        assert [rows(run, "run")[0]["world_size"] for run in runs] == [2 * nodes] * 2
        assert not any(rows(run, "end") for run in runs), "they were there together"
        for run in runs:
            cluster.launch("stop", run)
        for run, job in zip(runs, jobs, strict=True):
            cluster.wait_for_state(job, *ENDED)
            assert f"{run}: stopped" in log_of(run, job)


def test_a_stop_that_was_asked_for_is_not_undone(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = train(cluster, shards, run, *ENDLESS, nodes=1)
    wait_for(lambda: has_trained(run, 1), "training")
    assert f"job {job}: RUNNING on {cluster.nodes[0][:-1]}" in cluster.launch("status", run)
    cluster.launch("stop", run)
    assert cluster.wait_for_state(job, *ENDED) == "FAILED"
    assert f"{run}: stopped" in log_of(run, job)
    assert cluster.num_starts(job) == 1
    assert rows(run, "signal")[0]["source"] == "STOP file"
    assert f"job {job}: ended, as the run was stopped" in cluster.launch("status", run)


def test_a_stop_counts_from_the_job_on_and_for_more_than_a_signal(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """In the doctor, and where SLURM asks at the same time: then one start may still follow."""
    run = tmp_path / "run"
    spec = ("--nodes", 1, *SPEC, "--doctor")
    (job,) = jobs_of(cluster.launch("slurm", "train", *spec, *training(shards, run, *ENDLESS)))
    wait_for(lambda: any(cluster.pids(node, "pipeline.doctor") for node in cluster.nodes), "")
    cluster.launch("stop", run)
    assert cluster.wait_for_state(job, *ENDED) == "FAILED"
    assert f"{run}: stopped" in log_of(run, job)
    job = train(cluster, shards, run, *ENDLESS, nodes=1)
    wait_for(lambda: has_trained(run, 2), "training")
    cluster.run("scancel", "--signal=USR2", "--batch", job)
    (run / "STOP").touch()
    assert cluster.wait_for_state(job, *ENDED) == "FAILED"
    assert f"{run}: stopped" in log_of(run, job)
    assert cluster.num_starts(job) <= 2


def test_a_run_that_fails_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = train(cluster, tmp_path / "no-shards", run, nodes=1)
    assert cluster.wait_for_state(job, *ENDED) == "FAILED"
    assert cluster.num_starts(job) == 1
    assert "no-shards" in log_of(run, job)
    assert cluster.launch("logs", run)


def test_a_run_out_of_time_goes_on_by_itself(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """SLURM's own signal, a minute before the limit, which is set once it trains."""
    run = tmp_path / "run"
    job = train(cluster, shards, run, "--epochs", 100_000, "--log_every_steps", 50)
    wait_for(lambda: has_trained(run, 1, 2), "training")
    elapsed = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(elapsed[-2]) + 2}")
    wait_for(lambda: bool(rows(run, "signal")), "SLURM's signal")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")  # or the next one comes soon
    wait_for(lambda: has_trained(run, 2, 2), "the second start")
    first, second = rows(run, "run")
    (signal,) = rows(run, "signal")
    assert signal["source"] == "SIGUSR1"
    assert second["resumed_from"] == signal["step"] > 0
    assert first["resumed_from"] is None
    assert cluster.num_starts(job) == 2


def test_explain_says_what_slurm_has_done(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """A job that waits, one that was cancelled before it began, preempted, and out of time."""
    waiting, run = tmp_path / "waiting", tmp_path / "run"
    words = (*SPEC, "--sbatch-option=--begin=now+1hour", *training(shards, waiting))
    (job,) = jobs_of(cluster.launch("slurm", "train", *words))
    told = cluster.launch("explain", waiting)
    assert told.startswith("Queued since 20")
    assert f"job {job}: its time to begin has not come (BeginTime)." in told
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    told = cluster.launch("explain", waiting)
    assert told.startswith("Has not started since 20")
    assert f": job {job} is CANCELLED, and no rank has begun." in told
    job = train(cluster, shards, run, *ENDLESS, nodes=1)
    wait_for(lambda: has_trained(run, 1), "training")
    assert cluster.launch("explain", run).startswith("Training since 20")
    urgent = preempt(cluster, nodes=2, seconds=3600)  # it is queued until that one is cancelled
    wait_for(lambda: bool(rows(run, "end")), "the end")
    cluster.wait_for_state(job, "PENDING")
    told = cluster.launch("explain", run)
    assert told.startswith("Queued since 20")
    assert "also         SLURM preempted the job (SIGTERM)" in told
    cluster.run("scancel", job, urgent)
    cluster.wait_for_state(job, *ENDED)
    words = ("--nodes", 1, *SPEC, "--no-requeue", *training(shards, run, *ENDLESS))
    (job,) = jobs_of(cluster.launch("slurm", "train", *words))
    wait_for(lambda: has_trained(run, 2), "training")
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # as --signal=B:USR1@60 does
    cluster.wait_for_state(job, *ENDED)
    told = json.loads(cluster.launch("explain", run, "--json"))
    assert (told["state"], told["cause"]["kind"]) == ("stopped", "time_limit")
    assert told["cause"]["signal"] == "SIGUSR1"
    assert told["next"].endswith(
        f"the same command goes on from step {rows(run, 'end')[-1]['step']}"
    )


def test_what_slurm_cannot_give_is_refused_before_anything_is_submitted(
    cluster: Cluster, tmp_path: Path
) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    command = ("slurm", "chain", *SPEC, "--nodes", 40, "synthetic", "--output", shards)
    with pytest.raises(AssertionError, match="error: sbatch refuses the job 'train cifar10': "):
        cluster.launch(*command, "--", "cifar10", "--run-dir", run)
    assert not cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING")
    assert list(tmp_path.iterdir()) == []


UP = 'up{job="alexnet_train"}'


def asked(cluster: Cluster, expression: str) -> dict[tuple[str, ...], float]:
    """What the head's Prometheus answers: values by node, and by rank where there is one."""
    server = "http://127.0.0.1:9090"
    output = cluster.run("promtool", "query", "instant", "--format=json", server, expression)
    return {
        tuple(row["metric"][name] for name in ("node", "rank") if name in row["metric"]): float(
            row["value"][1]
        )
        for row in json.loads(output)
    }


def is_there(cluster: Cluster) -> bool:
    try:
        asked(cluster, UP)
    except AssertionError:  # it has just started
        return False
    return True


def test_prometheus_on_a_third_host_sees_each_rank_of_two_nodes(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """With default addresses and ports; and no target shows another node's ranks, or outlives it.

    SLURM ends a job's exporters with its ranks, before they could withdraw their targets.
    """
    require_tool("prometheus")
    run, one, two = tmp_path / "run", *cluster.nodes
    ranks = {(one, "0"), (one, "1"), (two, "2"), (two, "3")}
    targets = {node: RunDirectory(run).targets / f"run-{node}.json" for node in cluster.nodes}
    watch = ("launch", "prometheus", "--run-root", tmp_path, "--scrape-interval", "1s", "--start")
    with cluster.process(sys.executable, "-m", *watch):
        exporting = ("--metrics.exporter", "true", "--metrics.publish_seconds", 0.2)
        job = train(cluster, shards, run, *ENDLESS, *exporting)
        wait_for(lambda: has_trained(run, 1), "training")
        wait_for(lambda: is_there(cluster), "Prometheus")
        wait_for(lambda: asked(cluster, "alexnet_rank_up == 1").keys() == ranks, "all ranks")
        wait_for(lambda: asked(cluster, UP) == {(one,): 1, (two,): 1}, "both nodes")
        steps = "alexnet_train_steps_total > 0"
        wait_for(lambda: asked(cluster, steps).keys() == ranks, "their steps")
        assert entry_of(targets[one])[0] == f"{cluster.address(one)}:9753"
        assert entry_of(targets[two])[0] == f"{cluster.address(two)}:9753"
        assert f"here at {cluster.address(one)}, to everybody who reaches it" in log_of(run, job)

        own = targets[two].read_text()
        targets[two].write_text(own.replace(cluster.address(two), cluster.address(one)))
        wait_for(lambda: asked(cluster, UP) == {(one,): 1, (two,): 0}, "that the other is down")
        own_ranks = {(one, "0"), (one, "1")}
        wait_for(lambda: asked(cluster, "alexnet_rank_up").keys() == own_ranks, "one node's ranks")
        targets[two].unlink()
        wait_for(lambda: asked(cluster, "alexnet_rank_up == 1").keys() == ranks, "all again")
        assert targets[two].read_text() == own

        cluster.launch("stop", run)
        cluster.wait_for_state(job, *ENDED)
        wait_for(lambda: not any(RunDirectory(run).targets.iterdir()), "no targets")
        wait_for(lambda: not asked(cluster, UP), "that nothing is asked any more")
