"""Real ranks behind a real exporter: merging, death, restarts, ports, and the way out."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric, generate_latest

from data_prep.shard_set.locks import locked
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics import exporter
from pipeline.metrics.discovery import Target, location_of
from pipeline.metrics.exporter import main
from pipeline.metrics.node import NodeCollector, merge
from pipeline.metrics.pages import Identity
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import RankFile, Writer, read_rank_file, render_rank_file
from pipeline.run.directory import RunDirectory
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import (
    REPOSITORY,
    address_of,
    assert_clean_exposition,
    by_rank,
    entry_of,
    exporter_process,
    fetch,
    finish,
    free_port,
    process,
    rank_process,
    scrape,
    target_file,
    wait_for,
)

HOST = socket.gethostname()

NEVER_SILENT = 3600.0
"""Seconds between the publications of a rank that is up for as long as its process lives."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def publish(path: Path, rank: int, num_samples: int = 0) -> Path:
    """The file of a rank that lives in this process."""
    registry = CollectorRegistry()
    RankMetrics(rank, rank, registry).record_step(num_samples, {})
    run = RunDirectory(path)
    Publisher(
        run.metrics, registry, rank=rank, local_rank=rank, interval_seconds=NEVER_SILENT
    ).close()
    return run.metrics / f"rank-{rank:05d}.prom"


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of the writer in a rank file."""
    first, rest = path.read_bytes().split(b"\n", 1)
    fields = json.loads(first.removeprefix(b"# ")) | changes
    path.write_bytes(f"# {json.dumps(fields)}\n".encode() + rest)


def collect(path: Path, name: str) -> dict[int, float]:
    """Values by rank of one family, as the exporter would serve them."""
    families = NodeCollector(RunDirectory(path), HOST).collect()
    family = next((f for f in families if f.name == name), None)
    return {int(s.labels["rank"]): s.value for s in family.samples} if family else {}


def num_damaged(collector: NodeCollector) -> float:
    family = next(f for f in collector.collect() if f.name == "alexnet_exporter_damaged_files")
    return family.samples[0].value


# ------------------------------------------------------------------ merging, without a process


def test_eight_ranks_become_one_exposition(tmp_path: Path) -> None:
    for rank in range(8):
        publish(tmp_path, rank, num_samples=100 + rank)
    registry = CollectorRegistry()
    registry.register(NodeCollector(RunDirectory(tmp_path), HOST))
    text = generate_latest(registry)
    assert_clean_exposition(text)
    assert text.count(b"# TYPE alexnet_train_samples_total counter") == 1
    samples = collect(tmp_path, "alexnet_train_samples")
    assert samples == {rank: 100 + rank for rank in range(8)}
    assert set(collect(tmp_path, "alexnet_rank_up").values()) == {1}


FAMILY_NAMES = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.dictionaries(FAMILY_NAMES, st.sampled_from(["gauge", "counter"])), max_size=5))
def test_merge_keeps_each_family_once_and_no_mixed_types(ranks: list[dict[str, str]]) -> None:
    expositions = []
    for rank, types in enumerate(ranks):
        families = []
        for name, kind in types.items():
            family = Metric(name, "Help", kind)
            family.add_sample(name, {"rank": str(rank)}, rank)
            families.append(family)
        expositions.append(families)
    merged = merge(expositions)
    assert [f.name for f in merged] == list(dict.fromkeys(n for types in ranks for n in types))
    for family in merged:
        holders = [rank for rank, types in enumerate(ranks) if types.get(family.name)]
        agreeing = [r for r in holders if ranks[r][family.name] == ranks[holders[0]][family.name]]
        assert [sample.value for sample in family.samples] == agreeing


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(damage=st.one_of(st.integers(0, 4000), st.binary(max_size=200)))
def test_a_damaged_file_is_counted_and_leaves_the_others_alone(
    tmp_path: Path, damage: int | bytes
) -> None:
    """Half files, cut anywhere, and arbitrary bytes."""
    if not (tmp_path / "metrics/rank-00001.prom").exists():
        publish(tmp_path, 1, num_samples=7)
        (tmp_path / "whole").write_bytes(publish(tmp_path, 0).read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    content = whole[: damage % len(whole)] if isinstance(damage, int) else damage
    (tmp_path / "metrics/rank-00000.prom").write_bytes(content)
    collector = NodeCollector(RunDirectory(tmp_path), HOST)
    assert num_damaged(collector) == 1
    assert num_damaged(collector) == 2
    assert collect(tmp_path, "alexnet_train_samples") == {1: 7}


@pytest.mark.parametrize(
    "body", [b"", b"alexnet_x{ 1\n", b'alexnet_x{a="b"} pear\n', b"# TYPE alexnet_x\n", b"\xff\n"]
)
def test_a_damaged_body_is_reported(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "rank-00000.prom"
    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=1)
    path.write_bytes(render_rank_file(writer, body))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_rank_file(path)


def test_a_copied_file_does_not_double_a_rank(tmp_path: Path) -> None:
    (tmp_path / "metrics/rank-00001.prom").write_bytes(publish(tmp_path, 0).read_bytes())
    assert num_damaged(NodeCollector(RunDirectory(tmp_path), HOST)) == 1
    assert collect(tmp_path, "alexnet_rank_up") == {0: 1}


def test_ranks_of_other_hosts_are_left_to_their_own_exporter(tmp_path: Path) -> None:
    publish(tmp_path, 0)
    rewrite(publish(tmp_path, 1), host="elsewhere")
    assert collect(tmp_path, "alexnet_rank_up") == {0: 1}
    assert num_damaged(NodeCollector(RunDirectory(tmp_path), HOST)) == 0


def test_a_reused_pid_is_not_the_rank(tmp_path: Path) -> None:
    rewrite(publish(tmp_path, 0), start_ticks=1)
    assert collect(tmp_path, "alexnet_rank_up") == {0: 0}


def test_dead_ranks_of_an_earlier_attempt_are_forgotten(tmp_path: Path) -> None:
    """Two ranks died; the job came back with one: rank 1 is no missing rank, it is history."""
    heartbeat = read_rank_file(publish(tmp_path, 1)).heartbeat
    rewrite(tmp_path / "metrics/rank-00001.prom", start_ticks=1)
    publish(tmp_path, 0)
    rewrite(tmp_path / "metrics/rank-00000.prom", since=heartbeat - 1)
    assert collect(tmp_path, "alexnet_rank_up") == {0: 1, 1: 0}
    interval = read_rank_file(tmp_path / "metrics/rank-00000.prom").writer.interval_seconds
    rewrite(tmp_path / "metrics/rank-00000.prom", since=heartbeat + interval / 2)
    assert collect(tmp_path, "alexnet_rank_up") == {0: 1, 1: 0}, "of one start, a little later"
    rewrite(tmp_path / "metrics/rank-00000.prom", since=heartbeat + 2 * interval)
    assert collect(tmp_path, "alexnet_rank_up") == {0: 1}


def test_a_rank_silent_for_ten_intervals_is_down() -> None:
    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=2)
    file = RankFile(writer=writer, heartbeat=1000, said="running", was_running=True, families=())
    assert file.is_up(1020)
    assert not file.is_up(1020.1)
    assert not dataclasses.replace(file, was_running=False).is_up(1000)
    ended = dataclasses.replace(writer, start_ticks=writer.start_ticks + 1)
    assert writer.is_running
    assert not ended.is_running


def test_location_of_any_address_is_the_host() -> None:
    assert location_of("0.0.0.0", 1, "node17") == "node17:1"
    assert location_of("::1", 1, "node17") == "[::1]:1"
    assert location_of("10.0.0.1", 1, "node17") == "10.0.0.1:1"


# ------------------------------------------------------------------------------ whole processes


@pytest.mark.slow
def test_a_killed_rank_shows_on_the_next_scrape_and_its_successor_too(run: Path) -> None:
    with exporter_process(run, "--port", 0), rank_process(run, 0, NEVER_SILENT):
        with rank_process(run, 1, NEVER_SILENT) as victim:
            assert by_rank(scrape(run), "alexnet_rank_up") == {0: 1, 1: 1}
            victim.kill()
            # It stays a zombie, as under a torchrun that has not noticed yet.
            os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
            samples = scrape(run)
            assert by_rank(samples, "alexnet_rank_up") == {0: 1, 1: 0}
            assert by_rank(samples, "alexnet_train_samples_total").keys() == {0, 1}
        with rank_process(run, 1, NEVER_SILENT):
            assert by_rank(scrape(run), "alexnet_rank_up") == {0: 1, 1: 1}
        assert_clean_exposition(fetch(address_of(run)))


@pytest.mark.slow
def test_a_frozen_rank_is_down_until_it_thaws(run: Path) -> None:
    with exporter_process(run, "--port", 0), rank_process(run, 0, 0.05) as rank:
        rank.send_signal(signal.SIGSTOP)
        wait_for(lambda: by_rank(scrape(run), "alexnet_rank_up") == {0: 0}, "rank_up 0")
        rank.send_signal(signal.SIGCONT)
        wait_for(lambda: by_rank(scrape(run), "alexnet_rank_up") == {0: 1}, "rank_up 1")


@pytest.mark.slow
def test_in_a_slurm_job_it_leaves_with_its_ranks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with (
        rank_process(run, 0, NEVER_SILENT) as rank,
        exporter_process(run, "--port", 0) as exporter,
    ):
        for _ in range(2):
            wait_for_look(run, exporter)
        assert by_rank(scrape(run), "alexnet_rank_up") == {0: 1}
        finish(rank)
        assert exporter.wait(DEADLINE_SECONDS) == 0


def wait_for_look(run: Path, exporter: subprocess.Popen[bytes]) -> None:
    """Until the exporter has looked after its target, which it does before it looks for ranks.

    So twice is once for ranks; and all that it does when it begins is done.
    """
    target_file(run).unlink()
    wait_for(lambda: target_file(run).exists() or exporter.poll() is not None, "the target")
    assert exporter.poll() is None


WITHOUT_TIME = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pipeline.metrics import exporter

later, seconds = Path(sys.argv.pop()), float(sys.argv.pop())
exporter.time = SimpleNamespace(monotonic=lambda: seconds * later.exists())
sys.exit(exporter.main())
"""
"""An exporter whose clock stands still, but for a jump as soon as a file is there."""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [KEPT_SECONDS - 1, KEPT_SECONDS])
def test_it_outlives_its_ranks_and_then_leaves(run: Path, seconds: float) -> None:
    assert KEPT_SECONDS == 180
    later = run / "later"
    words = ["--run-dir", str(run), "--port", "0", str(seconds), str(later)]
    with subprocess.Popen([sys.executable, "-c", WITHOUT_TIME, *words], cwd=REPOSITORY) as exporter:
        wait_for(target_file(run).exists, "a target")
        with rank_process(run, 0) as rank:
            assert scrape(run)["alexnet_run_end_timestamp_seconds", frozenset()] == 0
            finish(rank)
        for _ in range(2):  # it knows that the rank is gone
            wait_for_look(run, exporter)
        samples = scrape(run)
        assert samples["alexnet_run_end_timestamp_seconds", frozenset()] > 0
        assert by_rank(samples, "alexnet_rank_up") == {0: 0}
        later.touch()
        if seconds < KEPT_SECONDS:
            for _ in range(2):
                wait_for_look(run, exporter)
            exporter.terminate()
        assert exporter.wait(DEADLINE_SECONDS) == 0
    assert not target_file(run).exists()


@pytest.mark.slow
def test_two_jobs_on_one_node_get_two_ports_and_two_targets(tmp_path: Path) -> None:
    port = free_port()
    runs = [tmp_path / name for name in ("one", "two")]
    with ExitStack() as stack:
        for run in runs:
            run.mkdir()
            stack.enter_context(rank_process(run, 0, NEVER_SILENT))
            exporter = stack.enter_context(exporter_process(run, "--port", port))
            wait_for_look(run, exporter)  # it has asked the other one whether it is there
        # One that has not answered in time has lost its target, and writes it again.
        wait_for(target_file(runs[0]).exists, "the first target")
        first, second = map(address_of, runs)
        assert first == f"127.0.0.1:{port}"
        assert second != first
        for run in runs:
            assert by_rank(scrape(run), "alexnet_rank_up") == {0: 1}
            own = {"run": run.name, "run_dir": str(run), "node": HOST}
            _, labels = entry_of(target_file(run))
            assert {name: text for name, text in labels.items() if name[:2] != "__"} == own
            served = frozenset((f"served_{name}", text) for name, text in own.items())
            assert scrape(run)["alexnet_exporter_info", served] == 1


def test_a_taken_port_gives_way_to_the_next(run: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with exporter_process(run, "--port", port):
            assert address_of(run) != f"127.0.0.1:{port}"
            assert by_rank(scrape(run), "alexnet_rank_up") == {}


def test_sigterm_ends_it_and_the_next_gets_the_same_port(run: Path) -> None:
    port = free_port()
    for _ in range(2):
        with exporter_process(run, "--port", port) as exporter:
            assert address_of(run) == f"127.0.0.1:{port}"
            scrape(run)
            exporter.terminate()
            assert exporter.wait(DEADLINE_SECONDS) == 0
        assert not target_file(run).exists()


@pytest.mark.slow
def test_of_all_exporters_of_a_run_the_last_one_serves(run: Path) -> None:
    """At the same port, and one of them if they start at once."""
    port = free_port()
    command = ("pipeline.exporter", "--run-dir", run, "--port", port)
    with ExitStack() as stack:
        first = stack.enter_context(exporter_process(run, "--port", port))
        others = [stack.enter_context(process(*command)) for _ in range(3)]
        assert first.wait(DEADLINE_SECONDS) == 0
        wait_for(lambda: sum(other.poll() is None for other in others) == 1, "a last one")
        assert [other.poll() for other in others].count(0) == 2
        wait_for(target_file(run).exists, "its target")
        assert address_of(run) == f"127.0.0.1:{port}"
        scrape(run)


def test_an_exporter_waits_for_the_one_before_unless_a_later_one_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setattr(exporter, "_POLL_SECONDS", 0.0)
    with locked(lock), ExitStack() as held:
        lock.write_text("later")
        assert not exporter._wait_for_turn(held, lock, "own")
        lock.write_text("own")
        monkeypatch.setattr(exporter, "_LEAVE_SECONDS", 0.0)
        with pytest.raises(BlockingIOError, match=f"another process holds {lock}"):
            exporter._wait_for_turn(held, lock, "own")
    with ExitStack() as held:
        assert exporter._wait_for_turn(held, lock, "own")
        with pytest.raises(BlockingIOError), locked(lock):
            pass


def test_the_target_of_a_killed_exporter_is_replaced(run: Path) -> None:
    with exporter_process(run, "--port", 0) as exporter:
        exporter.kill()
        exporter.wait(DEADLINE_SECONDS)
        stale = address_of(run)
    with exporter_process(run, "--port", free_port()):
        wait_for(lambda: address_of(run) != stale, "the new address")
        scrape(run)


def test_a_lost_target_is_written_again(run: Path) -> None:
    with exporter_process(run, "--port", 0):
        target_file(run).unlink()
        wait_for(target_file(run).exists, "the target")


def test_a_file_system_that_does_not_answer_does_not_end_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    identity = Identity(run="run", run_dir=str(tmp_path), node="node")
    path = tmp_path / "run-node.json"
    target = Target.of(path, identity, address="127.0.0.1:1", scheme="http")
    target.announce()
    monkeypatch.setattr(Path, "exists", fail)
    for _ in range(2):
        target.announce()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Stale file handle; will try again" in caplog.text


STARTER = """
import sys
from pathlib import Path
from pipeline.config.schema import MetricsConfig
from pipeline.metrics.exporter import start_exporter
from pipeline.run.directory import RunDirectory
metrics = MetricsConfig(exporter_port=0)
start_exporter(RunDirectory(Path(sys.argv[1])), metrics, "127.0.0.1")
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_a_started_exporter_is_detached_and_logs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # so that it leaves with its rank
    with rank_process(run, 0, NEVER_SILENT) as rank:
        subprocess.run([sys.executable, "-c", STARTER, run], check=True, cwd=REPOSITORY)
        wait_for(target_file(run).exists, "the target")
        assert by_rank(scrape(run), "alexnet_rank_up") == {0: 1}
        assert "serving" in (run / "metrics" / f"exporter-{HOST}.log").read_text()
        finish(rank)
    wait_for(lambda: not target_file(run).exists(), "the exporter's end")


def test_an_exporter_that_cannot_start_does_not_raise(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    child = subprocess.run(
        [sys.executable, "-c", STARTER, blocked], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert child.returncode == 0
    assert f"cannot start the metrics exporter: {blocked}/metrics: Not a" in child.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run-dir", "missing"], "missing is not a directory"),
        (["--run-dir", "blocked"], "blocked/metrics: File exists"),
        (["--run-dir", ".", "--address", "192.0.2.1"], "cannot listen on 192.0.2.1:9753"),
        (["--run-dir", ".", "--certfile", "a"], "metrics.exporter_keyfile is empty with"),
        (["--run-dir", ".", "--certfile", "a", "--keyfile", "b"], "cannot listen on 127.0.0.1:97"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/metrics").touch()
    assert main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("port", ["65536", "'x'"])
def test_a_wrong_port_is_refused(
    port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--run-dir", str(tmp_path), "--port", port.strip("'")])
    assert f"error: --port is {port}; expected " in capsys.readouterr().err
