"""What is said of runs that were written row by row; `tests/integration` has real ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from launch.__main__ import main
from pipeline.explain.explanation import ADVICE, CauseKind
from pipeline.ranks.heartbeats import Heartbeat, judge, silent_store
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.run.phase import Phase
from tests.pipeline.explain.scenes import BEGIN, HERE, Scene, tools
from tests.pipeline.fake_run import train_fields

LOST = "lost another rank: it was killed, hangs or its host is gone (Connection reset by peer)"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A run that has come to step 15, and saved at step 10."""
    scene = Scene(tmp_path / "run")
    scene.begin()
    scene.train(5, 10, 15)
    return scene


def lost_rank(scene: Scene, reporter: int = 0) -> None:
    error = f"rank {reporter} on {HERE}: {LOST}"
    scene.row("end", 15, outcome="failed", error=error, cause="lost_rank")


def test_each_kind_has_its_advice() -> None:
    assert ADVICE.keys() == set(get_args(CauseKind))


def test_a_killed_rank_is_named_with_its_signal_and_what_was_lost(scene: Scene) -> None:
    lost_rank(scene)
    scene.rank(0, "failed")
    scene.rank(1)
    scene.log(
        "cifar10 → run",
        f"error: rank 0 on {HERE}: {LOST}",
        "error: rank 1 was killed by SIGKILL; was memory short? 'dmesg' says so",
    )
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.host) == ("killed_rank", 1, HERE)
    assert told.cause.signal == "SIGKILL"
    assert (told.state, told.since, told.lost_steps, told.lost_seconds) == (
        *("failed", BEGIN + 15, 5),
        5.0,
    )
    assert told.sentence == (
        f"Failed at 2001-09-09 01:46:55 UTC (5.0 s ago): rank 1 on {HERE} was killed by SIGKILL; "
        "5 steps are lost (5.0 s)."
    )
    assert told.next.endswith("; the same command goes on from step 10")


def test_steps_that_were_done_while_a_save_was_written_took_time_too(scene: Scene) -> None:
    fields = {"path": "p", "num_bytes": 1, "reason": "periodic", "waited_seconds": 0.1}
    scene.row("checkpoint", 10, BEGIN + 15, seconds=4.5, **fields)
    lost_rank(scene)
    scene.rank(1)
    told = scene.explain()
    assert (told.lost_steps, told.lost_seconds) == (5, 4.5)


def test_without_a_log_the_rank_without_a_last_word_is_named_and_no_signal(scene: Scene) -> None:
    lost_rank(scene)
    scene.rank(0, "failed")
    scene.rank(1)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.signal) == ("killed_rank", 1, None)


def test_a_rank_that_is_killed_as_soon_as_it_published_is_named(scene: Scene) -> None:
    """Before another one has begun to."""
    lost_rank(scene)
    scene.rank(0, "failed", since=BEGIN)
    scene.rank(1, since=BEGIN - 1, heartbeat=BEGIN - 1)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("killed_rank", 1)


@pytest.mark.parametrize("logs", [True, False])
def test_of_several_ranks_none_is_named(scene: Scene, logs: bool) -> None:
    lost_rank(scene)
    scene.rank(0, "failed")
    for rank in (1, 2):
        scene.rank(rank)
    if logs:
        scene.log(*(f"error: rank {rank} was killed by SIGKILL" for rank in (1, 2)))
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("killed_rank", None)
    assert "ranks 1, 2 were killed" in told.sentence


def test_a_rank_that_torchrun_ended_after_the_first_is_not_blamed(scene: Scene) -> None:
    lost_rank(scene)
    scene.log(
        "error: rank 2 was killed by SIGTERM",
        "error: rank 1 was killed by SIGSEGV",
    )
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.rank, told.cause.signal) == (1, "SIGSEGV")


def test_a_launcher_that_lost_the_others_is_no_cause(scene: Scene) -> None:
    """As on the other nodes of one on which a rank was killed."""
    lost_rank(scene)
    scene.log(
        "error: the ranks cannot be started: RendezvousConnectionError: the store is gone",
        "error: rank 1 was killed by SIGKILL",
    )
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("killed_rank", 1)


def test_files_of_an_earlier_attempt_blame_nobody(scene: Scene) -> None:
    """The last one lost a rank before any had published."""
    scene.rank(0, "failed")
    scene.rank(1)
    lost_rank(scene)
    scene.row("start", 15, BEGIN + 30, began=BEGIN + 20, heard=None)
    error = f"rank 0 on {HERE}: {LOST}"
    scene.row("end", 15, BEGIN + 31, outcome="failed", error=error, cause="lost_rank")
    told = scene.explain(40)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.since) == ("lost_rank", None, BEGIN + 31)
    assert told.lost_steps == 5


def test_a_loss_of_which_nothing_is_known_names_nobody(scene: Scene) -> None:
    lost_rank(scene)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("lost_rank", None)
    assert "not known which" in told.sentence


KERNEL = "[{began:.6f}] {words}: Killed process {pid} (python) total-vm:9kB, anon-rss:7kB, UID:0"


@pytest.mark.parametrize("words", ["Out of memory", "Memory cgroup out of memory"])
def test_want_of_memory_is_told_in_the_kernel_s_words(
    scene: Scene, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_rank(scene)
    scene.rank(0, "failed")
    scene.rank(1, pid=4711)
    scene.log("error: rank 1 was killed by SIGKILL")
    said = KERNEL.format(began=9.0, words=words, pid=4711)
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", {"dmesg": said}))
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("out_of_memory", 1)
    assert f"{words}: Killed process 4711 (python)" in told.sentence
    assert "memory" in told.next


@pytest.mark.parametrize(("began", "pid"), [(9.0, 4712), (0.001, 4711), (9.0, 471)])
def test_the_kernel_s_words_on_another_process_are_none_on_this_one(
    scene: Scene, began: float, pid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or on one of its number, but from before it began."""
    lost_rank(scene)
    scene.rank(0, "failed")
    scene.rank(1, pid=4711)
    said = KERNEL.format(began=began, words="Out of memory", pid=pid)
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", {"dmesg": said}))
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == "killed_rank"


def beats(*phases: Phase, seconds: float = 99.0) -> list[Heartbeat | None]:
    """The heartbeats of ranks that are at these phases for so long."""
    return [
        Heartbeat(
            count=1,
            host=HERE,
            phase=phase.text,
            step=15,
            seconds=seconds,
            is_waiting=phase.may_wait(is_main=not rank, is_split=False, is_resident=False),
            limit_seconds=30,
        )
        for rank, phase in enumerate(phases)
    ]


def verdict(before: list[Heartbeat | None], now: list[Heartbeat | None]) -> str:
    """The watchdog's own."""
    return f"{judge(before, now)}; the stacks of all ranks are in run/hangs"


def no_answer(environment: LaunchEnvironment) -> str:
    """The watchdog's own, where the store does not answer."""
    return f"{silent_store(environment)}; the stacks of all ranks are in run/hangs"


def moved(beats: list[Heartbeat | None], *ranks: int) -> list[Heartbeat | None]:
    """Those of these ranks have come on."""
    return [
        dataclasses.replace(beat, count=2) if beat and rank in ranks else beat
        for rank, beat in enumerate(beats)
    ]


@pytest.mark.parametrize("where", ["events", "hangs", "log"])
@pytest.mark.parametrize(
    ("text", "rank", "phase"),
    [
        (
            verdict(
                beats(Phase.AVERAGING, Phase.COMPUTING),
                moved(beats(Phase.AVERAGING, Phase.COMPUTING), 0, 1),
            ),
            *(1, "computing"),
        ),
        (
            verdict(
                beats(Phase.AVERAGING, Phase.EVALUATING),
                moved(beats(Phase.AVERAGING, Phase.EVALUATING), 0),
            ),
            *(1, "evaluating"),
        ),
        (
            verdict(
                beats(Phase.AVERAGING, Phase.UPDATING),
                moved(beats(Phase.AVERAGING, Phase.UPDATING), 0, 1),
            ),
            *(None, None),
        ),
        (
            verdict(
                beats(Phase.READING, Phase.COMPUTING),
                moved(beats(Phase.READING, Phase.COMPUTING), 0, 1),
            ),
            *(None, None),
        ),
        (no_answer(LaunchEnvironment(rank=1)), 0, None),
        (no_answer(LaunchEnvironment(rank=0)), None, None),
        (no_answer(LaunchEnvironment(rank=1, is_store_kept=True)), None, None),
    ],
)
def test_a_verdict_names_who_hung_wherever_it_was_left(
    scene: Scene, where: str, text: str, rank: int | None, phase: str | None
) -> None:
    scene.rank(0)
    scene.rank(1)
    if where == "events":
        scene.row("end", 15, outcome="failed", error=text)
    elif where == "hangs":
        scene.run.hangs.mkdir()
        (scene.run.hangs / "rank-00001.txt").write_text(f"{text}\n\nrank 1 on {HERE}, …\n")
    else:
        scene.log(f"error: {text}", "error: rank 1 was killed by SIGKILL")
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.phase) == ("hang", rank, phase)
    assert told.cause.host == (None if rank is None else HERE)
    assert "stacks" not in told.sentence


def test_a_verdict_of_an_earlier_attempt_is_not_that_of_the_last(scene: Scene) -> None:
    scene.run.hangs.mkdir()
    (scene.run.hangs / "rank-00001.txt").write_text(
        "rank 1 on h hangs, saving after step 3 for 9 s"
    )
    scene.begin(10, time=4e9)
    scene.row("end", 15, 4e9 + 1, outcome="failed", error=f"rank 0 on h: {LOST}", cause="lost_rank")
    told = scene.explain()
    assert told.cause is not None
    assert told.cause.kind == "lost_rank"


DAMAGE = (
    "/data/train-000003.tar, member 0001.jpg: not the image that was written (CRC-32); that makes "
    "3 damaged images, and 2 may be (data.max_corrupt_ratio); restore it"
)


@pytest.mark.parametrize(
    ("error", "kind", "rank", "shard"),
    [
        (f"rank 1 on far: {DAMAGE}", "corrupt_samples", 1, "train-000003.tar"),
        (
            "rank 1 on far: https://host/set/train-000003.tar could not be fetched in 3 attempts: "
            "no byte came for 60 s; see that it is there and whole",
            *("fetch", 1, "train-000003.tar"),
        ),
        (
            "rank 1 on far: the checkpoint of step 15 could not be saved: No space left on device: "
            "it needs 10.0 MB; once that is mended, run the same command again",
            *("disk_full", 0, None),
        ),
        (
            "the checkpoint of step 15 could not be saved: No space left on device: it needs 10.0 "
            "MB; once that is mended, run the same command again",
            *("disk_full", 0, None),
        ),
        ("rank 1 on far: OutOfMemoryError: CUDA out of memory.", "gpu_out_of_memory", 1, None),
        ("rank 1 on far: KeyError: 'x'", "error", 1, None),
        (
            "rank 1 on far: the loss is nan at step 15: training has diverged",
            *("diverged", 0, None),
        ),
    ],
)
def test_an_error_gives_its_kind_and_the_rank_that_is_to_blame(
    scene: Scene, error: str, kind: str, rank: int, shard: str | None
) -> None:
    """Not always the one that says it: all ranks know the loss and that a save failed."""
    scene.rank(0, "failed", num_not_finite=1)
    scene.rank(1, "failed", host="far")
    scene.row("end", 15, outcome="failed", error=error)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.shard) == (kind, rank, shard)
    assert told.cause.host == (HERE if rank == 0 else "far")


@pytest.mark.parametrize("which", [(), (0, 1)])
def test_a_loss_that_is_nan_on_all_ranks_or_is_not_counted_names_none(
    scene: Scene, which: tuple[int, ...]
) -> None:
    for rank in (0, 1):
        scene.rank(rank, "failed", num_not_finite=int(rank in which))
    error = f"rank 1 on {HERE}: the loss is nan at step 15: training has diverged; lower it"
    scene.row("end", 15, outcome="failed", error=error)
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("diverged", None)
    assert "rank" not in told.sentence


def test_replicas_that_differ_are_told_by_the_alarm(scene: Scene) -> None:
    row: dict[str, Any] = {"rank": 2, "host": "far", "tensor": "conv1.weight"}
    scene.row(
        "alarm", 15, reason="replicas_differ", what="rank 2 on far differs from the others", **row
    )
    scene.row("end", 15, outcome="failed", error="rank 0 on here: the replicas differ")
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.cause.host) == ("replicas_differ", 2, "far")
    assert "first in conv1.weight: rank 2 on far differs from the others" in told.sentence


def test_undecided_replicas_name_no_rank(scene: Scene) -> None:
    row: dict[str, Any] = {"rank": None, "host": None, "tensor": "conv1.weight"}
    scene.row(
        "alarm",
        15,
        reason="replicas_differ",
        what="rank 0 and rank 1 differ, and it is undecided which is right",
        **row,
    )
    scene.row("end", 15, outcome="failed", error="the replicas differ")
    told = scene.explain()
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("replicas_differ", None)
    assert "undecided" in told.sentence


def test_a_run_whose_processes_are_all_gone(scene: Scene) -> None:
    scene.rank(0)
    scene.rank(1)
    told = scene.explain()
    assert (told.state, told.since) == ("was killed", BEGIN + 15)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.host) == ("lost_node", HERE), "it was booted since 2001"
    assert told.lost_steps == 5


def test_a_host_all_ranks_of_which_are_gone(scene: Scene) -> None:
    lost_rank(scene)
    scene.rank(0, "failed")
    for rank in (1, 2):
        scene.rank(rank, host="far", heartbeat=BEGIN)
    told = scene.explain(60)
    assert told.cause is not None
    assert (told.cause.kind, told.cause.host) == ("lost_node", "far")


@pytest.mark.parametrize(
    ("source", "kind", "signal"),
    [
        ("STOP file", "stop_asked", None),
        ("SIGINT", "stop_asked", "SIGINT"),
        ("SIGUSR1", "time_limit", "SIGUSR1"),
        ("SIGTERM", "signal", "SIGTERM"),
        ("end of torchrun", "lost_launcher", None),
        ("something of a newer version", "signal", None),
    ],
)
def test_a_run_that_was_asked_to_stop(
    scene: Scene, source: str, kind: str, signal: str | None
) -> None:
    scene.row("signal", 15, source=source)
    scene.row("end", 15, outcome="stopped")
    told = scene.explain()
    assert told.cause is not None
    assert (told.state, told.cause.kind, told.cause.signal) == ("stopped", kind, signal)
    assert told.lost_steps == 0


def test_a_run_that_stopped_where_max_steps_said(scene: Scene) -> None:
    scene.row("end", 15, outcome="stopped")
    assert "--max-steps" in scene.explain().sentence


def test_a_run_that_completed_and_has_not_learned(scene: Scene) -> None:
    scene.row("end", 15, outcome="completed")
    assert scene.explain().sentence == "Completed at 2001-09-09 01:46:55 UTC (5.0 s ago)."
    other = Scene(scene.run.path.parent / "other")
    other.begin()
    other.row("alarm", 5, reason="not_learning", loss=2.303)
    other.row("train", 15, **train_fields(15) | {"loss": 2.302})
    other.row("end", 15, outcome="completed")
    told = other.explain()
    assert told.cause is not None
    assert (told.state, told.cause.kind) == ("completed", "not_learning")
    assert "since step 5" in told.sentence


def test_damaged_lines_and_a_log_that_is_no_text_cost_nothing(scene: Scene) -> None:
    with scene.run.events.open("ab") as file:
        file.write(b'{"kind": "train"}\n{"kind": "tr')
    scene.log("error: ")
    (scene.run.logs / "other.log").write_bytes(b"\xff\xfe\0" * 1000)
    (scene.run.logs / "folder.log").mkdir()
    (scene.run.logs / "link.log").symlink_to("nowhere")
    (scene.run.path / "config.json").write_text("{")
    scene.run.metrics.mkdir()
    (scene.run.metrics / "rank-00000.prom").write_bytes(b"\xff")
    told = scene.explain()
    assert told.state == "was killed"
    assert "line 6 is not an event" in told.details["faults"]
    assert json.loads(json.dumps(told.to_json()))["state"] == "was killed"


def test_what_a_terminal_would_obey_is_shown_as_text(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "KeyError: \x1b[2J\ud800\n"
    scene.row("end", 15, outcome="failed", error=error)
    assert main(["explain", str(scene.run.path)]) == 0
    text = capsys.readouterr().out
    assert r"KeyError: \x1b[2J" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert main(["explain", str(scene.run.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cause"]["text"].startswith(error.rstrip())
    assert told["sentence"].startswith("Failed at 2001")


def test_a_start_that_was_refused_is_told_by_its_log(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run")
    scene.log("error: /data is not a shard set: it has no _info.json", time=0)
    told = scene.explain()
    assert told.cause is not None
    assert (told.state, told.cause.kind) == ("failed", "refused")
    assert "/data is not a shard set" in told.sentence


def test_a_run_that_never_began(tmp_path: Path) -> None:
    assert Scene(tmp_path / "run").explain().sentence == "Has not started."
