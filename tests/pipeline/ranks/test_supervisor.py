"""Supervisors, as processes whose rank is a function of `supervised`."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from pipeline.config.timeouts import heartbeat_seconds
from pipeline.run.ending import ExitCode
from tests.pipeline.monitoring import free_port, wait_for
from tests.pipeline.rank_jobs import Job, rank_environment
from tests.pipeline.ranks.supervised import CONFIG, PATIENCE


def supervised(scenario: str, folder: Path, port: int | None = None) -> Job:
    environment = rank_environment(1, 0, free_port() if port is None else port)
    return Job(1, "tests.pipeline.ranks.supervised", [scenario, folder], environment=environment)


def test_a_rank_that_hangs_has_time_to_write_its_stacks(tmp_path: Path) -> None:
    with supervised("named", tmp_path) as job:
        assert job.wait() == [ExitCode.FAILED]
    assert (tmp_path / "stacks").exists()
    seconds = float((tmp_path / PATIENCE).read_text())
    assert seconds > 2 * heartbeat_seconds(CONFIG.timeout_seconds), "which may be stacks, or a look"


def test_a_signal_from_before_the_first_rank_is_heeded(tmp_path: Path) -> None:
    with supervised("signalled", tmp_path) as job:
        assert job.wait() == [-signal.SIGTERM]
    assert not (tmp_path / "done").exists()


def test_a_store_that_does_not_answer_keeps_no_signal_from_the_rank(tmp_path: Path) -> None:
    with supervised("waiting", tmp_path) as job:
        wait_for((tmp_path / "there").exists, "the rank")
        pid = job.processes[0].pid
        keeper, _ = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(keeper), signal.SIGSTOP)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        assert job.wait() == [ExitCode.STOPPED]


def test_a_port_that_another_program_uses_is_said_at_once(tmp_path: Path) -> None:
    with (
        socket.create_server(("", 0)) as other,
        supervised("waiting", tmp_path, other.getsockname()[1]) as job,
    ):
        assert job.wait() == [ExitCode.FAILED]
    assert "cannot listen at 127.0.0.1:" in job.errors[0]
