"""The benchmark itself: faults are caused, the job goes on, and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.under_fire.schedule import Fault, write
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY, wait_for

FAULTS = [
    Fault(kind="exception", rank=1, seconds=1.0),
    Fault(kind="exporter killed", rank=3, seconds=2.0),
    Fault(kind="kill -9", rank=2, seconds=3.0),
]


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.under_fire", *map(str, options)]


def processes_of(folder: Path) -> list[bytes]:
    """The command lines that name it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it has ended
            continue
        if bytes(folder) in words:
            found.append(words)
    return found


def test_a_job_goes_on_after_each_fault_with_the_same_weights(tmp_path: Path) -> None:
    schedule, figures, scratch = tmp_path / "faults.json", tmp_path / "figures.json", tmp_path / "t"
    scratch.mkdir()
    write(schedule, FAULTS)
    options = ("--minutes", 0.08, "--schedule", schedule, "--json", figures)
    # None of these faults is found by a deadline; a rank of a busy machine would miss one of 4 s.
    patience = ("--distributed.timeout_seconds", 300, "--distributed.save_timeout_seconds", 300)
    done = subprocess.run(
        command(*options, "--", *patience),
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_bytes())
    assert found["weights_are_equal"]
    assert [fault["kind"] for fault in found["faults"]] == [fault.kind for fault in FAULTS]
    attempts = {name: kind["attempts"]["median"] for name, kind in found["kinds"].items()}
    assert attempts == {"exception": 1, "exporter killed": 0, "kill -9": 1}
    assert found["attempts"] == 3
    assert 0 < found["goodput"] < 1
    wait_for(lambda: processes_of(scratch) == [], "the end of all that was killed")
    assert list(scratch.iterdir()) == []


def test_nothing_is_left_of_one_that_is_terminated(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--minutes", 10), cwd=REPOSITORY, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as child:
        wait_for(lambda: len(processes_of(tmp_path)) >= 4, "launchers, and what they start")
        child.terminate()
        assert child.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM
    wait_for(lambda: processes_of(tmp_path) == [], "the end of all that was killed")
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_that_replays_nothing_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text('{"faults": []}')
    done = subprocess.run(
        command("--schedule", path), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --schedule {path} cannot be replayed: it has no fault")
