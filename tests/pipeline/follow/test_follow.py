"""Followers as processes of their own: begun early and late, killed, and begun again."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import read_rows
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.follow.histories import (
    as_float32,
    bits,
    killed_and_resumed,
    make_run,
    numbers_of,
    row,
    write,
)
from tests.pipeline.follow.test_mlflow_run import read as read_mlflow
from tests.pipeline.follow.test_mlflow_run import runs_at
from tests.pipeline.follow.test_tensorboard_log import read as read_tensorboard

TO = pytest.mark.parametrize("to", ["tensorboard", "mlflow"])
OF_MLFLOW = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


def follower(run: RunDirectory, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "follow", str(run.path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_shown(run: RunDirectory, to: str) -> None:
    wanted = numbers_of(read_rows(run.events))
    if to == "tensorboard":
        assert bits(read_tensorboard(run.path / to)) == bits(as_float32(wanted))
    else:
        uri = f"sqlite:///{run.path}/mlflow.db"
        (found,) = runs_at(uri)
        assert bits(read_mlflow(uri, found)) == bits(wanted)


@pytest.mark.slow
@OF_MLFLOW
@pytest.mark.parametrize(("to", "num_kills"), [("tensorboard", 4), ("mlflow", 1)])
def test_those_that_are_killed_at_random_moments_show_each_point_once(
    run: RunDirectory, to: str, num_kills: int
) -> None:
    """The first begins before the run, which is killed and resumed; the last ends by itself."""
    chance, are_dead = random.Random(7), threading.Event()

    def train() -> None:
        *rows, last = [*killed_and_resumed()[:-1], row(999, "complete", 60)]
        for event in rows:
            are_dead.wait(chance.uniform(0, 0.08))
            write(run, [event])
        are_dead.wait()
        write(run, [last])

    trainer = threading.Thread(target=train)
    for kill in range(num_kills):
        with follower(run, "--to", to) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(
                "waiting for" if kill == 0 else str(run.path)
            )
            if kill == 0:
                trainer.start()
                assert process.stdout.readline().startswith(str(run.path))
            time.sleep(chance.uniform(0, 1.2))
            process.kill()
    are_dead.set()
    with follower(run, "--to", to) as process:
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert output.endswith("outcome of the run: completed\n")
    trainer.join()
    assert_shown(run, to)


SPY = """
import sys
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] is not None:
        flags = arguments[2] & (1 | 2 | 0o100 | 0o1000)
        if flags: print("changes", arguments[0], file=sys.stderr)
    elif event in ("os.remove", "os.rename", "os.truncate", "os.chmod", "os.mkdir", "os.rmdir"):
        print("changes", arguments[0], file=sys.stderr)
sys.addaudithook(note)
from launch.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A follower that tells what it opens to write, removes or renames."""


@pytest.mark.slow
@TO
def test_files_of_the_trainer_are_only_read(run: RunDirectory, to: str) -> None:
    write(run, killed_and_resumed())

    def state() -> dict[Path, tuple[str, int]]:
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in (run.config, run.events)
        }

    before = state()
    command = [sys.executable, "-c", SPY, "follow", str(run.path), "--to", to, "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert state() == before
    prefix = f"changes {run.path}/"
    changed = {
        line.removeprefix(prefix).partition("/")[0]
        for line in done.stderr.splitlines()
        if line.startswith(prefix)
    }
    assert changed, done.stderr
    own = ("tensorboard", "mlflow.db", ".mlflow.db", ".follow-", ".tmp-mlflow.db-")
    assert all(name.startswith(own) for name in changed), changed


def test_a_run_that_may_go_on_is_waited_for_as_long_as_was_asked(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, killed_and_resumed())
    words = ["follow", str(run.path), "--to", "tensorboard"]
    assert main([*words, "--wait-seconds", "5"]) == 0
    assert capsys.readouterr().out == (
        f"{run.path} is in {run.path}/tensorboard up to step 60\noutcome of the run: stopped\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "tensorboard", "--tracking-uri", "http://localhost"], "has no effect with --to"),
        (["--to", "mlflow", "--output", "log"], "--output has no effect with --to mlflow"),
        (["--to", "mlflow", "--once", "--wait-seconds", "3"], "--wait-seconds has no effect with"),
        (["--to", "tensorboard", "--once"], "has no events.jsonl: give the directory of a run"),
    ],
)
def test_what_cannot_be_is_refused(
    run: RunDirectory, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["follow", str(run.path), *options]) == 1
    assert message in capsys.readouterr().err


@TO
def test_what_is_not_installed_is_named(
    run: RunDirectory,
    to: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["follow", str(run.path), "--to", to]) == 1
    assert f"pip install 'alexnet-2012[{to}]'" in capsys.readouterr().err


def test_a_second_follower_of_the_same_is_refused(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, killed_and_resumed()[:3])
    with follower(run, "--to", "tensorboard") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert main(["follow", str(run.path), "--to", "tensorboard", "--once"]) == 1
        process.kill()
    assert "is being followed there already" in capsys.readouterr().err
