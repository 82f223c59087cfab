"""What is said of runs that go on, though something is wrong; and of SLURM's jobs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.recipes import RECIPES
from pipeline.config.saved import to_json
from pipeline.explain.explanation import Explanation
from pipeline.metrics.discovery import Target
from pipeline.metrics.pages import Identity
from pipeline.run.lock import lock_run
from pipeline.run.phase import Phase
from tests.machine import small_disk
from tests.pipeline.explain.scenes import BEGIN, HERE, Scene, tools
from tests.pipeline.fake_run import checkpoint_fields, start_fields, train_fields
from tests.pipeline.monitoring import free_port


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A run at work, with the run's lock: this process is both of its ranks."""
    scene = Scene(tmp_path / "run \udcff")  # a name that is no text
    scene.begin()
    scene.train(5, 10, 15)
    config = {"recipe": "cifar10", "config": to_json(RECIPES["cifar10"]()), "manifest_sha256": "0"}
    scene.run.config.write_text(json.dumps(config))
    for rank in (0, 1):
        scene.rank(rank, is_alive=True, heartbeat=BEGIN + 19)
    lock = lock_run(scene.run, None, 0)
    yield scene
    os.close(lock)


def kinds(told: Explanation) -> list[str | None]:
    """That of the first cause, and how many others there are."""
    assert told.state == "training"
    return [told.cause.kind if told.cause else None, told.details.get("also")]


def test_a_run_in_which_all_is_well(scene: Scene) -> None:
    told = scene.explain()
    assert (told.sentence, told.next) == (
        "Training since 2001-09-09 01:46:40 UTC (20.0 s).",
        "wait: it goes on by itself",
    )


def test_a_rank_that_stopped_publishing_is_named(scene: Scene) -> None:
    scene.rank(0, is_alive=True, heartbeat=BEGIN + 44)
    told = scene.explain(45)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.host) == ("silent_rank", 1, HERE)
    assert "no sign of life for 26.0 s" in told.sentence


def test_a_process_that_is_gone_is_named_before_others_notice(scene: Scene) -> None:
    scene.rank(1)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("killed_rank", 1)


@pytest.mark.parametrize(
    ("phases", "rank", "phase"),
    [
        ((Phase.AVERAGING, Phase.READING), 1, "reading"),
        ((Phase.COMPUTING, Phase.AVERAGING), 0, "computing"),
        ((Phase.AVERAGING, Phase.AVERAGING), None, None),
        ((Phase.READING, Phase.READING), None, "reading"),
        ((Phase.COMPUTING, Phase.READING), None, None),
        ((None, Phase.READING), None, None),
    ],
)
def test_a_stall_names_the_rank_that_does_not_wait_and_what_it_is_at(
    scene: Scene, phases: tuple[Phase | None, ...], rank: int | None, phase: str | None
) -> None:
    for number, at in enumerate(phases):
        scene.rank(number, is_alive=True, heartbeat=BEGIN + 99, last_step=BEGIN + 15, phase=at)
    told = scene.explain(100)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.phase) == ("stall", rank, phase)
    assert ("not known" in told.sentence) == (phase is None)
    assert ("ranks 0, 1 are reading a batch" in told.sentence) == (phases == (Phase.READING,) * 2)


def test_a_shard_that_does_not_come_is_named(scene: Scene) -> None:
    for rank, at in enumerate((Phase.AVERAGING, Phase.READING)):
        scene.rank(rank, is_alive=True, heartbeat=BEGIN + 99, last_step=BEGIN + 15, phase=at)
    warning = "no byte came for 60 s; trying again in 0.4 s"
    scene.log("cifar10 → run", f"WARNING: https://host/set/train-000002.tar: {warning}")
    told = scene.explain(100)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("stall", 1)
    assert (told.cause.phase, told.cause.shard) == ("reading", "train-000002.tar")


@pytest.mark.parametrize("phase", [Phase.EVALUATING, Phase.SAVING])
def test_what_takes_long_is_no_stall(scene: Scene, phase: Phase) -> None:
    for rank in (0, 1):
        scene.rank(rank, is_alive=True, heartbeat=BEGIN + 99, last_step=BEGIN + 15, phase=phase)
    assert kinds(scene.explain(100)) == [None, None]


@pytest.mark.parametrize(
    ("row", "rank", "words"),
    [
        (("rank", 1, HERE, "data_wait"), 1, f"rank 1 on {HERE} makes the others wait"),
        (("rank", 1, HERE, "forward_backward"), 1, "(forward and backward), for 0.2 s a step"),
        (("loader", None, None, None), None, "it is the reading"),
        (("unattributed", None, None, None), None, "slower than the ranks' own work explains"),
    ],
)
def test_a_straggler_is_named_as_its_alarm_does(
    scene: Scene, row: tuple[Any, ...], rank: int | None, words: str
) -> None:
    fields = dict(zip(("slow", "rank", "host", "phase"), row, strict=True))
    scene.row("alarm", 15, reason="straggler", lag_seconds=0.2, **fields)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.phase) == ("straggler", rank, row[3])
    assert words in told.sentence
    for number in (0, 1):
        scene.rank(number, is_alive=True, heartbeat=BEGIN + 999, last_step=BEGIN + 999)
    assert kinds(scene.explain(1000)) == [None, None], "it was one long ago"


def test_a_save_that_failed_matters_until_the_next_one(scene: Scene) -> None:
    failed = "warning: no checkpoint saved: Permission denied"
    scene.log("cifar10 → run", failed)
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == "saves_fail"
    assert "could not be saved: Permission denied" in told.sentence
    scene.log("cifar10 → run", failed, "saved run/checkpoints/step-00000010 (9.0 MB in 0.1 s)")
    assert kinds(scene.explain()) == [None, None]


def test_a_disk_without_room_for_the_next_checkpoint_is_told(scene: Scene) -> None:
    scene.run.checkpoints.mkdir()
    assert kinds(scene.explain()) == [None, None]
    free = shutil.disk_usage(scene.run.checkpoints).free
    scene.row("checkpoint", 16, **checkpoint_fields("periodic") | {"num_bytes": 2 * free})
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == "disk_full"
    assert f" MB free, and a checkpoint needs {2 * free / 1e6:,.1f} MB or so" in told.sentence


@pytest.mark.slow
def test_a_full_disk_is_told_before_the_first_checkpoint(tmp_path: Path) -> None:
    other = Scene(tmp_path / "other")
    other.begin()
    lock = lock_run(other.run, None, 0)
    with small_disk(other.run.checkpoints, "1m"):
        assert kinds(other.explain()) == [None, None]
        (other.run.checkpoints / "other").write_bytes(bytes(1 << 20))
        assert kinds(other.explain()) == ["disk_full", None]
    os.close(lock)


def test_a_loss_of_guessing_is_told_until_it_is_another(scene: Scene) -> None:
    scene.row("alarm", 15, reason="not_learning", loss=2.303)
    scene.row("train", 20, **train_fields(20) | {"loss": 2.301})
    assert kinds(scene.explain(21)) == ["not_learning", None]
    scene.row("train", 25, **train_fields(25) | {"loss": 2.1})
    assert kinds(scene.explain(26)) == [None, None]


def test_damaged_images_are_counted_with_their_shard(scene: Scene) -> None:
    for rank in (0, 1):
        fields: Any = {"rank": rank, "sample": rank, "shard": "train-000001.tar", "what": "CRC-32"}
        scene.row("alarm", 15, reason="damaged_image", **fields)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.shard) == (
        *("corrupt_samples", None),
        "train-000001.tar",
    )
    assert "2 damaged images in train-000001.tar" in told.sentence


def test_an_exporter_that_does_not_answer_is_told_and_a_far_one_is_not_asked(scene: Scene) -> None:
    def announce(name: str, node: str) -> None:
        identity = Identity(run="run", run_dir=str(scene.run.path.resolve()), node=node)
        address = f"127.0.0.1:{free_port()}"
        path = scene.run.targets / f"{name}.json"
        Target.of(path, identity, address=address, scheme="http").announce()

    announce("far", "far")
    assert kinds(scene.explain()) == [None, None]
    announce("here", HERE)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.host) == ("dead_exporter", HERE)
    assert "training is not affected" in told.next


def test_repeated_preemption_is_told_with_what_it_costs(scene: Scene) -> None:
    for time in (20, 30, 40):
        step = 15 + time // 10
        scene.row("signal", step, BEGIN + time, source="SIGTERM")
        scene.row("checkpoint", step, BEGIN + time, **checkpoint_fields("preempt"))
        scene.row("end", step, BEGIN + time + 1, outcome="stopped")
        scene.row("run", step, BEGIN + time + 9, **start_fields(step))
    for rank in (0, 1):
        scene.rank(rank, is_alive=True, heartbeat=BEGIN + 59)
    told = scene.explain(60)
    assert told.cause is not None
    assert told.cause.kind == "preempted"
    assert "preempted 3 times: " in told.sentence


def test_the_worst_comes_first_and_the_others_are_told_too(scene: Scene) -> None:
    scene.row("alarm", 15, reason="not_learning", loss=2.303)
    scene.row("train", 16, **train_fields(16) | {"loss": 2.303})
    fields: Any = {
        "slow": "rank",
        "rank": 1,
        "host": HERE,
        "phase": "data_wait",
        "lag_seconds": 0.2,
    }
    scene.row("alarm", 16, reason="straggler", **fields)
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == "straggler"
    assert "it is not learning" in told.details["also"]


JOB = "JobId=12 JobState={} Reason={} Restarts=1 SubmitTime=2001-09-09T01:47:40 NodeList=(null)"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "job 12: no free nodes (Resources)"),
        ("QOSMaxJobsPerUserLimit", "job 12: QOSMaxJobsPerUserLimit"),
        ("None", "job 12: SLURM does not say why"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_job_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, words: str, is_new: bool
) -> None:
    """Its log comes only when it begins: the events have its number; or it was preempted."""
    scene = Scene(tmp_path / "run")
    scene.row("submit", 0, BEGIN - 1, to="slurm", job="12")
    if not is_new:
        scene.begin()
        scene.train(5)
        scene.row("signal", 7, source="SIGTERM")
        scene.row("end", 7, outcome="stopped")
        scene.log("slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT x DUE TO PREEMPTION ***")
    path = tools(tmp_path / "bin", {"scontrol": JOB.format("PENDING", reason)})
    monkeypatch.setenv("PATH", path)
    told = scene.explain(99)
    assert told.cause is not None
    assert (told.state, told.cause.kind) == ("queued", "queue")
    assert words in told.sentence
    assert told.since is not None
    assert told.details.get("also") == (None if is_new else "SLURM preempted the job (SIGTERM)")


@pytest.mark.parametrize(
    ("state", "line", "kind"),
    [
        ("TIMEOUT", "", "time_limit"),
        ("NODE_FAIL", "", "lost_node"),
        ("OUT_OF_MEMORY", "", "out_of_memory"),
        ("CANCELLED", "", "cancelled"),
        ("", "error: *** JOB 12 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***", "time_limit"),
        ("", "error: *** STEP 12.0 ON n1 CANCELLED AT x DUE TO PREEMPTION ***", "preempted"),
        (
            "",
            "error: *** JOB 12 ON n1 CANCELLED AT x DUE TO NODE FAILURE, SEE LOG ***",
            "lost_node",
        ),
        ("", "error: Detected 1 oom_kill event in StepId=12.0.", "out_of_memory"),
        ("", "error: *** JOB 12 ON n1 CANCELLED AT 2001-09-09T01:47:40 ***", "cancelled"),
        ("", "error: *** STEP 12.0 ON n1 CANCELLED AT 2001-09-09T01:47:40 ***", "killed_rank"),
    ],
)
@pytest.mark.parametrize("tool", ["scontrol", "sacct"])
def test_what_slurm_did_comes_before_what_follows_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, line: str, kind: str, tool: str
) -> None:
    """But a step ends like that after a kill too."""
    scene = Scene(tmp_path / "run")
    scene.row("submit", 0, BEGIN - 1, to="slurm", job="12")
    scene.begin()
    scene.train(5)
    error = "lost another rank: it was killed, hangs or its host is gone (x)"
    scene.row("end", 7, outcome="failed", error=f"rank 0 on n1: {error}", cause="lost_rank")
    scene.log("job 12, start 1, on n1", "x → y", f"slurmstepd: {line}", name="slurm-12")
    with (scene.run.logs / "slurm-12.log").open("a") as file:
        file.write("error: rank 1 was killed by SIGKILL; was memory short? 'dmesg' says so\n")
    os.utime(scene.run.logs / "slurm-12.log", (BEGIN + 7, BEGIN + 7))
    answers = {
        "scontrol": f"JobId=12 JobState={state} StartTime=2001-09-09T00:00:00",
        "sacct": f"12|{state} by 0|None|x|2001-09-09T00:00:00|x|n1",
    }
    others = {"scontrol": "", "sacct": "", "dmesg": ""}
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", others | {tool: answers[tool]}))
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == kind
