"""How runs and ranks stand, read from real run directories whose ranks end in every way."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.explain.explain import explain
from pipeline.metrics import rank_file
from pipeline.metrics.declared import GLOBAL_STEP, HEARTBEAT, STEP_SECONDS, TRAIN_SAMPLES
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.outcomes import (
    RootOutcomes,
    RunStatus,
    read_run_status,
)
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import (
    Writer,
    rank_file_name,
    read_rank_file,
    render_rank_file,
)
from pipeline.report.ranks import Ranks, compare_ranks
from pipeline.run import event_log
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RunOutcome
from pipeline.run.events import EndEvent, SubmitEvent
from pipeline.run.lock import lock_run
from tests.machine import DEADLINE_SECONDS, small_disk
from tests.pipeline.fake_run import RunHistory, eval_fields, start_fields
from tests.pipeline.monitoring import finish, rank_process, served, wait_for

HERE = socket.gethostname()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "run")
    run.path.mkdir(parents=True)
    return run


def run_status(run: RunDirectory, host: str = HERE, in_seconds: float = 0.0) -> RunStatus:
    return read_run_status(run, host, time.time() + in_seconds)


def by_rank(run: RunDirectory) -> dict[tuple[str, ...], str]:
    return served(NodeCollector(run, HERE), "alexnet_rank_outcome")


@pytest.mark.slow
def test_ranks_that_run_die_and_complete(run: RunDirectory) -> None:
    """With one killed the run goes on, for all that can be known; then it is killed, then done.

    A new attempt is one that begins more than an interval after the last heartbeat of the old one:
    no process begins as soon as that.
    """
    assert run_status(run).outcome is None
    interval = 0.05
    with (
        rank_process(run.path, 0, interval) as leader,
        rank_process(run.path, 1, interval) as victim,
    ):
        assert by_rank(run) == {("0", "0"): "running", ("1", "1"): "running"}
        first, second = (run.metrics / rank_file_name(rank) for rank in (0, 1))
        begin = read_rank_file(second).writer.since
        wait_for(lambda: read_rank_file(first).heartbeat > begin, "both at once")
        victim.kill()
        victim.wait()
        assert by_rank(run) == {("0", "0"): "running", ("1", "1"): "killed"}
        assert run_status(run).outcome == "running"
        leader.kill()
        leader.wait()
    assert set(by_rank(run).values()) == {"killed"}
    assert served(NodeCollector(run, HERE), "alexnet_run_outcome") == {(): "killed"}
    root = RootOutcomes(run.path.parent, HERE)
    assert served(root, "alexnet_run_outcome") == {("run",): "killed"}
    with rank_process(run.path, 0, interval) as leader:
        assert by_rank(run) == {("0", "0"): "running"}, "rank 1 is history"
        finish(leader)
    assert served(root, "alexnet_run_outcome") == {("run",): "completed"}
    assert served(root, "alexnet_rank_outcome") == {("run", HERE, "0", "0"): "completed"}


def disk_of(collector: Collector, **labels: str) -> list[float]:
    """Size of the file system of a run's checkpoints, and what is left."""
    registry = CollectorRegistry()
    registry.register(collector)
    names = ("alexnet_disk_size_bytes", "alexnet_disk_free_bytes")
    return [registry.get_sample_value(name, labels) or -1 for name in names]


def test_the_disk_of_the_checkpoints_is_watched(run: RunDirectory) -> None:
    node, root = NodeCollector(run, HERE), RootOutcomes(run.path.parent, HERE)
    with (
        rank_process(run.path, 0),
        rank_process(run.path, 1),
        small_disk(run.checkpoints, "1m"),
    ):
        assert disk_of(node) == disk_of(root, run="run") == [1 << 20, 1 << 20]
        (run.checkpoints / "step").write_bytes(bytes(300_000))
        assert disk_of(node) == disk_of(root, run="run") == [1 << 20, (1 << 20) - 74 * 4096]
    shutil.rmtree(run.checkpoints)
    assert disk_of(node)[0] > 1 << 20, "that of the run, before it saves"


def test_a_run_whose_disk_cannot_be_asked_hides_no_other(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> NoReturn:
        raise OSError(errno.ESTALE, "stale", str(path))

    with rank_process(run.path, 0):
        monkeypatch.setattr(Path, "exists", stale)
        assert disk_of(RootOutcomes(run.path.parent, HERE), run="run") == [-1, -1]


def test_of_ranks_on_another_host_silence_tells(run: RunDirectory) -> None:
    with rank_process(run.path, 0, 0.1) as leader:
        leader.kill()
        leader.wait()
    (rank,) = run_status(run, "elsewhere").ranks
    assert rank.max_silence_seconds == pytest.approx(1)
    assert read_run_status(run, "elsewhere", rank.heartbeat + 0.9).outcome == "running"
    found = read_run_status(run, "elsewhere", rank.heartbeat + 1.1)
    assert (found.outcome, found.ended) == ("killed", rank.heartbeat + 1)
    assert served(NodeCollector(run, "elsewhere"), "alexnet_run_outcome") == {}
    assert served(NodeCollector(run, "elsewhere"), "alexnet_rank_outcome") == {}


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_the_last_word_counts_until_the_run_begins_again(
    outcome: RunOutcome, run: RunDirectory
) -> None:
    """A lock that is held for long behind it is that of a new attempt."""
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    lock = lock_run(run, None, 0)
    assert run_status(run).outcome == "running"
    history.write("end", 10, outcome=outcome)
    assert run_status(run).outcome == outcome
    assert run_status(run, in_seconds=60).outcome == "running"
    os.close(lock)
    assert run_status(run, in_seconds=60).outcome == outcome
    history.write("run", 10, **start_fields(resumed_from=10))
    found = run_status(run)
    assert found.outcome == "killed", "no lock, and no rank that publishes"
    assert found.ended == run.events.stat().st_mtime
    history.close()


def test_a_long_history_is_read_from_its_end(run: RunDirectory) -> None:
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("end", 0, outcome="failed", error="x")
    history.write("run", 0, **start_fields())
    for step in range(2000):
        history.write("checkpoint", step, path="p", num_bytes=1, seconds=0.1, reason="periodic")
    assert run.events.stat().st_size > 1 << 17
    assert run_status(run).outcome == "killed"
    history.write("end", 0, outcome="stopped")
    assert run_status(run).outcome == "stopped"
    history.close()


def test_however_many_evaluations_follow_the_end_stands(run: RunDirectory) -> None:
    """Those of `pipeline.evaluate`: more than are read at once, and a row longer than that."""
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("end", 10, outcome="completed")
    evaluation = eval_fields(5, 9, 10, 10) | {"by": "evaluate"}
    for _ in range(250):
        history.write("eval", 10, **evaluation)
    history.write("eval", 10, **evaluation | {"shard_set": "x" * 200_000})
    assert run_status(run).outcome == "completed"
    history.write("run", 10, **start_fields(resumed_from=10))
    history.write("eval", 10, **evaluation)
    history.close()
    assert run_status(run).outcome == "killed"


def test_a_run_that_was_only_submitted_has_not_begun(run: RunDirectory) -> None:
    event_log.append(run.events, SubmitEvent(step=0, epoch=0, to="slurm", job="17"))
    assert run_status(run).outcome is None
    event_log.append(run.events, EndEvent(step=0, epoch=0, outcome="failed", error="no room"))
    event_log.append(run.events, SubmitEvent(step=0, epoch=0, to="slurm", job="18"))
    assert run_status(run).outcome == "failed"


def test_a_run_that_is_odd_hides_no_other(run: RunDirectory) -> None:
    """By a name that is no text, of itself or of a rank's host, or by a row without a time."""
    root = run.path.parent
    odd, damaged = (RunDirectory(root / name) for name in (os.fsdecode(b"caf\xe9"), "damaged"))
    for each in (run, odd, damaged):
        each.path.mkdir(exist_ok=True)
        history = RunHistory(each)
        history.write("run", 0, **start_fields())
        history.write("end", 10, outcome="completed")
        history.close()
    with damaged.events.open("a") as file:
        file.write('{"kind": "end", "step": 1, "epoch": 1, "time": null, "outcome": "failed"}\n')
    odd.metrics.mkdir()
    own = Writer.this_process(rank=0, local_rank=0, interval_seconds=1)
    writer = dataclasses.replace(own, host=os.fsdecode(b"n\xff"), since=0.0)
    rank = render_rank_file(writer, f"{HEARTBEAT.name} {time.time()}\n".encode())
    (odd.metrics / rank_file_name(0)).write_bytes(rank)
    registry = CollectorRegistry()
    registry.register(RootOutcomes(root, HERE))
    text = generate_latest(registry).decode()
    for name in ("run", "caf\ufffd", "damaged"):
        assert f'alexnet_run_outcome{{outcome="completed",run="{name}"}} 1.0' in text
    assert 'node="n\ufffd"' in text


def test_a_pipe_in_one_run_keeps_no_other_waiting(run: RunDirectory) -> None:
    """The time limit of this is that of the whole test: whoever opens a pipe waits."""
    root = run.path.parent
    for name in ("events.jsonl", ".lock", "metrics/rank-00000.prom", "run"):
        each = run if name == "run" else RunDirectory(root / Path(name).name)
        each.metrics.mkdir(parents=True)
        history = RunHistory(each)
        history.write("run", 0, **start_fields())
        history.write("end", 10, outcome="completed")
        history.close()
        if each is not run:
            (each.path / name).unlink(missing_ok=True)
            os.mkfifo(each.path / name)
    script = f"""if True:
        from pathlib import Path
        from pipeline.metrics.outcomes import RootOutcomes
        from prometheus_client import CollectorRegistry, generate_latest
        registry = CollectorRegistry()
        registry.register(RootOutcomes(Path({str(root)!r}), "h"))
        print(generate_latest(registry).decode())
    """
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS)
    assert b'alexnet_run_outcome{outcome="completed",run="run"} 1.0' in done.stdout
    assert b'run="events.jsonl"' not in done.stdout


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_numbers_that_are_none_are_not_there(run: RunDirectory, value: str) -> None:
    run.metrics.mkdir()
    path = run.metrics / rank_file_name(0)
    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=1)
    samples = [f"{metric.name} {value}" for metric in (GLOBAL_STEP, TRAIN_SAMPLES, STEP_SECONDS)]
    samples += [f'{STEP_SECONDS.name}{{phase="h2d"}} {value}', f"{HEARTBEAT.name} 1700000000.0"]
    path.write_bytes(render_rank_file(writer, "\n".join([*samples, ""]).encode()))
    status = run_status(run)
    assert (status.step, status.num_damaged) == (0, 0)
    assert status.ranks[0].phase_seconds == {}
    ranks = compare_ranks(status)
    assert isinstance(ranks, Ranks)
    assert ranks.shown[0].num_samples == 0
    assert explain(run, asks=False).state == "starting"
    path.write_bytes(render_rank_file(writer, f"{HEARTBEAT.name} {value}\n".encode()))
    assert run_status(run).num_damaged == 1


def test_where_no_lock_can_be_known_the_ranks_report(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: int, _operation: int) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with rank_process(run.path, 0) as leader:
        monkeypatch.setattr(fcntl, "flock", refuse)
        assert run_status(run).outcome == "running"
        leader.kill()
        leader.wait()
        assert run_status(run).outcome == "killed"
    shutil.rmtree(run.metrics)
    assert run_status(run).outcome == "running", "for all that can be known"


def test_outcomes_are_served_for_three_minutes(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of runs that ended long ago are not, however many there are."""
    with rank_process(run.path, 0) as leader:
        leader.kill()
        leader.wait()
    ended = run_status(run).ended
    assert ended is not None
    (run.path.parent / "file").touch()
    (run.path.parent / "folder").mkdir()
    root = RootOutcomes(run.path.parent, HERE)
    for seconds, expected in ((KEPT_SECONDS - 1, {("run",): "killed"}), (KEPT_SECONDS + 1, {})):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: ended + seconds)
        assert served(root, "alexnet_run_outcome") == expected


def test_a_frozen_rank_still_runs(run: RunDirectory) -> None:
    """`alexnet_rank_up` tells that it is silent; its process is there."""
    with rank_process(run.path, 0):
        (rank,) = run_status(run).ranks
    writer = dataclasses.replace(
        rank.writer, pid=os.getpid(), start_ticks=own_start_ticks(), interval_seconds=0.1
    )
    frozen = dataclasses.replace(rank, writer=writer, heartbeat=0.0)
    assert not frozen.is_up(time.time())
    assert frozen.outcome(HERE, time.time()) == "running"


def test_a_last_word_that_is_published_while_the_file_is_read_counts(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a rank that ends just then is taken for killed, and an alert fires."""
    path = run.metrics / rank_file_name(0)
    path.parent.mkdir()
    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=2)
    words = {state: last_word(writer, state) for state in ("running", "failed")}
    path.write_bytes(words["running"])

    def ended_meanwhile(_: int) -> int | None:
        path.write_bytes(words["failed"])
        return None

    monkeypatch.setattr(rank_file, "process_start_ticks", ended_meanwhile)
    (rank,) = run_status(run).ranks
    assert rank.outcome(HERE, time.time()) == "failed"


def last_word(writer: Writer, outcome: RunOutcome) -> bytes:
    registry = CollectorRegistry()
    RankMetrics(0, 0, registry).record_outcome(outcome)
    heartbeat = f"# TYPE {HEARTBEAT.name} gauge\n{HEARTBEAT.name} {time.time()}\n"
    return render_rank_file(writer, heartbeat.encode() + generate_latest(registry))


def own_start_ticks() -> int:
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.slow
def test_a_rank_file_of_an_older_version_says_nothing_of_its_outcome(run: RunDirectory) -> None:
    with rank_process(run.path, 0) as leader:
        finish(leader)
    path = run.metrics / "rank-00000.prom"
    assert read_rank_file(path).said == "completed"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "rank_outcome" not in line))
    assert read_rank_file(path).said == "running"
