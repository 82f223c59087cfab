"""One job at a time has a run directory; an earlier start of the same job makes room."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.run.directory import RunDirectory
from pipeline.run.lock import JobStart, is_locked, lock_run
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY, wait_for

FIRST, SECOND = (JobStart(job="12", number=number) for number in (0, 1))
OTHER = JobStart(job="13", number=1)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def held_elsewhere(run: RunDirectory, start: JobStart | None = None) -> subprocess.Popen[bytes]:
    """A process that has the run until its input ends."""
    program = (
        "import sys; from pathlib import Path; from pipeline.run.directory import RunDirectory;"
        "from pipeline.run.lock import JobStart, lock_run;"
        f"lock_run(RunDirectory(Path(sys.argv[1])), {start}, 0);"
        "print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, run.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def take_lock(run: RunDirectory, start: JobStart | None = None, wait_seconds: float = 0) -> None:
    os.close(lock_run(run, start, wait_seconds))


@pytest.mark.slow
def test_two_jobs_do_not_share_a_run(run: RunDirectory) -> None:
    assert not is_locked(run)
    with held_elsewhere(run) as child:
        assert is_locked(run)
        with pytest.raises(ValueError, match=r"in use by another job on .*: wait for its end"):
            take_lock(run)
        child.kill()  # a kill gives the run free
        child.wait()
        assert not is_locked(run)
        take_lock(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("holder", "mine"),
    [(FIRST, None), (FIRST, OTHER), (FIRST, FIRST), (SECOND, FIRST), (None, SECOND)],
)
def test_a_job_that_is_not_a_later_start_of_the_same_one_asks_nobody_to_leave(
    holder: JobStart | None, mine: JobStart | None, run: RunDirectory
) -> None:
    with held_elsewhere(run, holder) as child:
        holder_text = "another job" if holder is None else "job 12"
        with pytest.raises(ValueError, match=f"in use by {holder_text} on "):
            take_lock(run, mine, 60)
        assert not run.stop_request.exists()
        child.kill()


@pytest.mark.slow
def test_an_earlier_start_of_the_same_job_is_asked_to_leave(run: RunDirectory) -> None:
    with held_elsewhere(run, FIRST) as child:
        later = threading.Thread(target=take_lock, args=(run, SECOND, DEADLINE_SECONDS))
        later.start()
        wait_for(run.stop_request.exists, "the request")
        assert later.is_alive()
        child.communicate()
        later.join(DEADLINE_SECONDS)
    assert not later.is_alive()
    assert not run.stop_request.exists(), "it was not for this start"


@pytest.mark.slow
def test_an_earlier_start_that_does_not_leave_is_named(run: RunDirectory) -> None:
    with held_elsewhere(run, FIRST) as child:
        with pytest.raises(ValueError, match=r"earlier start of job 12 on .*see to that host"):
            take_lock(run, SECOND, 0.1)
        assert not run.stop_request.exists()
        child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b'{"host": "n", "start": {"a": 1}}'])
def test_a_lock_without_a_name_is_just_another_job(content: bytes, run: RunDirectory) -> None:
    with held_elsewhere(run, FIRST) as child:
        (run.path / ".lock").write_bytes(content)
        with pytest.raises(ValueError, match="in use by another job: wait"):
            take_lock(run, SECOND, 60)
        child.kill()


def test_a_look_at_the_lock_does_not_refuse_a_job(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_busy_machines_glance = DEADLINE_SECONDS
    monkeypatch.setattr("pipeline.run.lock._GLANCE_SECONDS", a_busy_machines_glance)
    take_lock(run)
    handle = os.open(run.path / ".lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    timer = threading.Timer(0.3, os.close, [handle])
    timer.start()
    take_lock(run)
    timer.join()


def test_a_file_system_without_locks_is_no_reason_to_stop(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_handle: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    take_lock(run)
    assert "cannot lock" in caplog.text
    assert is_locked(run) is None
