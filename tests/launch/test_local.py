"""Training on this machine, and looking at it, as a user does."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.local import choose_num_ranks, num_gpus
from launch.torchrun import local_environment, run_torchrun, torchrun_command
from pipeline.metrics.rank_file import read_rank_file
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import STOP_SIGNALS, JobOutcome, exit_code_of
from pipeline.run.event_log import of_type, read_rows
from pipeline.run.events import SubmitEvent
from pipeline.run.ledger import ledger_of
from pipeline.run.lock import lock_run
from pipeline.train.command import parse_command
from tests.integration.training import all_rows, make_shards, rows, training, wait_for_step
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY, wait_for

LONG = ("--epochs", 1000)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("local") / "shards")


@contextlib.contextmanager
def start(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A job that heeds hangups; no process of it outlives the block."""
    command = ["env", "--default-signal=HUP", sys.executable, "-m", "launch", "local"]
    with subprocess.Popen(
        [*command, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as job:
        try:
            yield job
        finally:
            if job.poll() is None:
                kill_tree(job.pid)


def kill_tree(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        for child in children_of(pid):
            kill_tree(child)
        os.kill(pid, signal.SIGKILL)


def last_words(output: str) -> str:
    """The line above the table of a run's places, which is the end of what it says."""
    *_, outcome, checkpoint, metrics, report = output.splitlines()
    names = [line.split()[0] for line in (checkpoint, metrics, report)]
    assert names == ["checkpoint", "metrics", "report"]
    return outcome


def launch(*words: object) -> int:
    return main([*map(str, words)])


@pytest.mark.slow
def test_a_run_is_trained_watched_stopped_and_finished(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with start("--nproc", 2, "--max-restarts", 1, *training(shards, run, *LONG)) as job:
        wait_for_step(run, 3)
        assert launch("status", run) == 0
        assert "state        training" in capfd.readouterr().out
        (log,) = (run / "logs").glob("local-*.log")
        with start("--nproc", 1, *training(shards, run, *LONG)) as refused:
            output, _ = refused.communicate(timeout=DEADLINE_SECONDS)
        assert refused.returncode == 1
        assert "in use by" in output
        command = [sys.executable, "-m", "launch", "logs", str(run)]
        shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert shown.stdout.splitlines()[0] == str(log), "that of the job at work"
        assert output.splitlines()[-1].startswith("error: "), "nothing is said of the other job"
        assert launch("stop", run) == 0
        output, _ = job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 75
    assert len(rows(run, "run")) == 1, "torchrun has not started it again"
    assert log.read_text() in output
    assert "asked by STOP file" in output
    assert last_words(output).startswith("stopped after step ")
    capfd.readouterr()
    assert launch("status", run) == 0
    assert "state        stopped" in capfd.readouterr().out
    ranks = [read_rank_file(path) for path in (run / "metrics").glob("rank-*.prom")]
    assert [rank.said for rank in ranks] == ["stopped", "stopped"]
    assert launch("stop", run) == 1
    assert "is not being trained: it stopped" in capfd.readouterr().err
    step = rows(run, "end")[-1]["step"]
    with start("--nproc", 2, *training(shards, run, *LONG), "--max-steps", step + 3) as job:
        job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "launch", "logs", run, "--lines", "400"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"resumed from {run}" in shown.stdout, "the newest log"
    assert [row["to"] for row in all_rows(run) if row["kind"] == "submit"] == ["local"] * 3
    ledger = ledger_of(read_rows(RunDirectory(run).events))
    assert ledger is not None
    assert (ledger.num_attempts, ledger.num_preemptions) == (2, 0)
    assert ledger.is_queue_known
    assert ledger.seconds["queued"] == 0
    assert ledger.begin == all_rows(run)[0]["time"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "is_to_group"),
    [
        (signal.SIGTERM, False),
        (signal.SIGUSR1, False),
        (signal.SIGINT, False),
        (signal.SIGINT, True),
        (signal.SIGHUP, True),
    ],
)
def test_signals_are_passed_on(
    number: signal.Signals, is_to_group: bool, shards: Path, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C, and a hangup when it is closed, to all of its processes."""
    run = tmp_path / "run"
    with start("--nproc", 2, *training(shards, run, *LONG)) as job:
        wait_for_step(run, 3)
        if is_to_group:
            os.killpg(job.pid, number)
        else:
            job.send_signal(number)
        output, _ = job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 75
    assert rows(run, "signal")[0]["source"] == number.name
    assert last_words(output).startswith("stopped after step ")


@pytest.mark.slow
@pytest.mark.parametrize("has_ranks", [False, True])
def test_ctrl_c_while_ranks_start_is_reported_in_a_sentence(
    has_ranks: bool, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun, or the ranks, are held where they import a module: they start, however long."""
    run, held = tmp_path / "run", tmp_path / "held"
    held.mkdir()
    (held / "sitecustomize.py").write_text(HELD_AT_AN_IMPORT)
    monkeypatch.setenv("PYTHONPATH", str(held))
    monkeypatch.setenv("HELD_AT", "pipeline.train.loop" if has_ranks else "torch")
    with start("--nproc", 2, *training(shards, run, *LONG)) as job:
        assert job.stdout is not None
        ranks = job.stdout.readline()
        wait_for(lambda: len(list(held.glob("held-*"))) == 1 + has_ranks, "imports")
        job.send_signal(signal.SIGINT)
        output, _ = job.communicate(timeout=DEADLINE_SECONDS)
    (log,) = (run / "logs").iterdir()
    assert ranks == f"2 ranks; log: {log}\n"
    assert output == f"{run}: interrupted; what the ranks wrote is in {log}\n"
    assert job.returncode == 75


HELD_AT_AN_IMPORT = """
import os, pathlib, sys, time
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["HELD_AT"]:
            pathlib.Path(__file__).with_name(f"held-{os.getpid()}").touch()
            while True:
                time.sleep(0.05)
sys.meta_path.insert(0, Held())
"""


@pytest.mark.slow
def test_ranks_without_torchrun_save_and_leave(shards: Path, tmp_path: Path) -> None:
    """Else nobody can stop them, or start them again."""
    run = tmp_path / "run"
    with start("--nproc", 2, *training(shards, run, *LONG)) as job:
        wait_for_step(run, 3)
        (torchrun,) = children_of(job.pid)
        os.kill(torchrun, signal.SIGKILL)
        job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 75
    (asked,), (save,) = rows(run, "signal"), rows(run, "checkpoint")[-1:]
    assert (asked["source"], save["step"]) == ("end of torchrun", asked["step"])


@pytest.mark.slow
def test_ranks_save_and_leave_when_the_launcher_is_killed(shards: Path, tmp_path: Path) -> None:
    """Else the same command finds them at work, without a log."""
    run = tmp_path / "run"
    with start("--nproc", 2, *training(shards, run, *LONG)) as job:
        wait_for_step(run, 3)
        (torchrun,) = children_of(job.pid)
        job.kill()
        wait_for(lambda: not Path(f"/proc/{torchrun}").exists(), "the end of torchrun")
    assert rows(run, "signal")[-1]["source"] == "SIGTERM"
    assert rows(run, "end")[-1]["outcome"] == "stopped"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_request_to_stop_outlives_ranks_that_die_of_something_else(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with start("--nproc", 2, "--max-restarts", 3, *training(shards, run, *LONG)) as job:
        wait_for_step(run, 3)
        (torchrun,) = children_of(job.pid)
        ranks = children_of(torchrun)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        assert launch("stop", run) == 0
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
        job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 75
    assert [row["source"] for row in rows(run, "signal")] == ["STOP file"]
    assert not (run / "STOP").exists()


def test_a_full_disk_costs_lines_of_the_log_alone(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        lines = "print('a line\\n' * 20_000, end='error: x\\nerror: x\\n')"
        command = [sys.executable, "-c", lines]
        assert run_torchrun(lambda: command, Path("/dev/full"), Path("/no/events")) == (0, None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    written = capfdbinary.readouterr().out
    assert written == b"a line\n" * 20_000 + b"error: x\n", "an error once, whoever says it"


@pytest.mark.slow
@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_a_run_needs_no_terminal(output: str, shards: Path, tmp_path: Path) -> None:
    words = training(shards, tmp_path / "run", "--max-steps", 2)
    command = shlex.join([sys.executable, "-m", "launch", "local", "--nproc", "1", *words])
    done = subprocess.run(
        ["bash", "-c", f"{command} {output}"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_that_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("local", "cifar10", "--help"), ("local", "-h", "cifar10")):
        with contextlib.suppress(SystemExit):  # of the parser
            assert launch(*words) == 0
        assert "usage: python -m" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    with start(*training(tmp_path / "no-shards", tmp_path / "run")) as job:
        output, _ = job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == 1
    ranks, error = output.splitlines()
    assert ranks.startswith("1 rank; log: ")
    assert error.startswith(f"error: {tmp_path}/no-shards")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("import os; os._exit(75)", 75, ""),
        ("import os; os.kill(os.getpid(), 9)", 137, "error: rank 0 was killed by SIGKILL; was "),
    ],
)
def test_torchrun_adds_nothing(statement: str, code: int, said: str) -> None:
    command = torchrun_command(1, 0, "timeit", ["-n1", "-r1", statement])
    done = subprocess.run(
        command,
        env=local_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)


def test_a_wrong_command_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("local", "cifar10", "--run-dir", tmp_path / "run", "--epochs", "x") == 1
    assert "--epochs is 'x'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_hangup_that_nohup_wards_off_ends_nothing(is_ignored: bool, tmp_path: Path) -> None:
    """torchrun would handle every signal of its option, even one that was ignored before."""
    end = tmp_path / "end"
    waits = f"while not os.path.exists({str(end)!r}): time.sleep(0.01)"
    statements = ("import os, time", "print('on', flush=True)", waits)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with subprocess.Popen(
            torchrun_command(1, 0, "timeit", ["-n1", "-r1", *statements]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == b"on\n"
                child.send_signal(signal.SIGHUP)
                if is_ignored:
                    end.touch()
                child.communicate(timeout=DEADLINE_SECONDS)
            finally:
                if child.poll() is None:
                    kill_tree(child.pid)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (child.returncode == 0) is is_ignored


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("completed", 0), ("interrupted", 75), ("stopped", 75), ("stuck", 75), ("failed", 1)],
)
def test_each_outcome_has_its_exit_code(outcome: JobOutcome, code: int) -> None:
    assert exit_code_of(outcome) == code


@pytest.mark.parametrize(
    ("visible", "expected"), [("0,1,2", 3), ("", 0), ("-1", 0), ("3,-1,4", 1), ("GPU-af3c", 1)]
)
def test_gpus_are_those_that_are_visible(
    visible: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_gpus() == expected


@pytest.mark.parametrize(
    "tool", ["#!/bin/sh\nprintf 'GPU 0: a\\nGPU 1: b\\n'", "#!/bin/sh\nexit 9"]
)
def test_gpus_are_counted_by_their_driver(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text(tool)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert num_gpus() == (2 if "printf" in tool else 0)


@pytest.mark.parametrize(
    ("num_gpus", "options", "expected"),
    [
        (8, (), 8),
        (8, ("--distributed.device", "cpu"), 1),
        (0, (), 1),
        (0, ("--model.columns", "split"), 2),
    ],
)
def test_the_number_of_ranks(num_gpus: int, options: tuple[str, ...], expected: int) -> None:
    words = ["alexnet_2012", "--data.shards", "s", "--run-dir", "r", *options]
    assert choose_num_ranks(parse_command(words), num_gpus) == expected


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "stop", "logs", "outcome"):
        assert launch(command, tmp_path) == 1
        assert f"{tmp_path} is not a run directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch("logs", tmp_path, "--lines", 0)
    assert "--lines is 0; expected at least 1" in capsys.readouterr().err


def test_a_log_of_what_was_not_started_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.local.run_torchrun", lambda *_: (1, ""))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "local-1.log").touch()
    os.utime(tmp_path / "logs" / "local-1.log", (1, 1))
    assert launch("local", "cifar10", "--data.shards", "s", "--run-dir", tmp_path) == 1
    assert capsys.readouterr().out.count("\n") == 1, "no word on a run that it left alone"
    newest = RunDirectory(tmp_path).newest_log
    assert newest is not None
    assert newest.name == "local-1.log"


@pytest.mark.parametrize("made", ["thesis.txt", "_info.json"])
def test_a_folder_of_other_things_is_not_made_a_run(
    made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / made).touch()
    assert launch("local", "cifar10", "--data.shards", "s", "--run-dir", tmp_path) == 1
    assert f"is no run directory, and holds {made}: give" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [made]


def test_a_file_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("local", "cifar10", "--data.shards", "s", "--run-dir", "/dev/null") == 1
    out, error = capsys.readouterr()
    assert error.startswith("error: --run-dir /dev/null cannot be made: a file of that name ")
    assert out == ""


def test_a_run_is_stopped_while_its_next_job_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one does that was submitted with --dependency=afterany."""
    run = RunDirectory(tmp_path / "run")
    run.logs.mkdir(parents=True)
    for job in (9, 10):
        (run.logs / f"slurm-{job}.log").touch()
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho JobState=PENDING Reason=Dependency")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert launch("stop", run.path) == 1
    assert "has not begun: end it with 'scancel 10'" in capsys.readouterr().err
    lock = lock_run(run, None, 0)
    try:
        assert launch("stop", run.path) == 0
    finally:
        os.close(lock)
    assert run.stop_request.exists()


@pytest.mark.parametrize(
    ("words", "pod", "expected"),
    [
        ((), False, [("local", None)]),
        (("--nodes", 2, "--node-rank", 0, "--rendezvous", "n0:29500"), False, [("local", None)]),
        (("--nodes", 2, "--node-rank", 1, "--rendezvous", "n0:29500"), False, []),
        ((), True, [("kubernetes", socket.gethostname())]),
    ],
)
def test_the_first_node_says_that_a_job_was_started(
    words: tuple[object, ...],
    pod: bool,
    expected: list[tuple[str, str | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a pod nobody knows how long it had to wait; a job that leaves nothing has failed."""
    monkeypatch.setattr("launch.local.run_torchrun", lambda *_: (0, None))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    run = tmp_path / "run"
    assert launch("local", "--nproc", 1, *words, *training(tmp_path / "shards", run)) == 1
    rows = list(read_rows(RunDirectory(run).events))
    assert [(row.to, row.job) for row in of_type(rows, SubmitEvent)] == expected
    assert len(rows) == len(expected)
    if pod:
        ledger = ledger_of(rows)
        assert ledger is not None
        assert not ledger.is_queue_known
