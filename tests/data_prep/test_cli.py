"""Wrong arguments, and what is shown while a conversion runs."""

from __future__ import annotations

import ast
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.shard_set.progress import Progress
from tests.data_prep.conftest import SYNTHETIC_OPTIONS
from tests.data_prep.raw_data import REPOSITORY, copy_tree, run_cli
from tests.machine import DEADLINE_SECONDS

SYNTHETIC = ("shard", "synthetic", "--output", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "cifar11", "--output", "x"], "choose from .*folder.*cifar10.*synthetic"),
        (["shard", "folder", "--output", "x"], "required: --input"),
        (["shard", "folder", "--input", "x"], "required: --output"),
        (
            ["shard", "synthetic", "--output", "x", "--workers", "0"],
            "--workers is 0; expected 1 to",
        ),
        (
            ["shard", "synthetic", "--output", "x", "--workers", "1000"],
            "is 1000; expected 1 to 512",
        ),
        (["shard", "synthetic", "--output", "x", "--size", "100000"], "expected 1 to 8192"),
        (
            ["shard", "synthetic", "--output", "x", "--size", "2.5"],
            "--size is '2.5'; expected a whole number",
        ),
        (
            ["shard", "synthetic", "--output", "x", "--seed", "-1"],
            "--seed is -1; expected 0 or more, below",
        ),
        (
            ["shard", "synthetic", "--output", "x", "--max-reject-ratio", "nan"],
            "--max-reject-ratio is 'nan'; expected a finite number",
        ),
        (["shard", "synthetic", "--output", "x", "--encoding", "png"], "expected one of jpeg, rgb"),
        (["verify"], "required: SHARDS"),
        (["beton", "x"], "required: OUT.beton"),
        ([], "required: COMMAND"),
        (
            ["shard", "folder", "--inptu", "x", "--output", "y"],
            "unknown option --inptu; did you mean --input",
        ),
        (["shard", "synthetic", "--outp", "x"], "unknown option --outp; did you mean --output"),
        (["verify", "x", "--full", "--full"], "--full is given twice: leave one out"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "folder", "--input", "{tmp}/none", "--output", "{tmp}/out"], "is not a folder"),
        (["shard", "cifar10", "--input", "{tmp}/none", "--output", "{tmp}/out"], "does not exist"),
        (
            ["shard", "synthetic", "--output", "{tmp}/file"],
            "--output {tmp}/file cannot be made a folder: File exists; give another one",
        ),
        (
            ["shard", "synthetic", "--output", "/proc/shards"],
            "--output /proc/shards cannot be made a folder: No such file or directory; give",
        ),
        (["verify", "{tmp}/none"], "{tmp}/none is not a shard set: it has no _info.json"),
        (["verify", "{tmp}/file"], "{tmp}/file is a file; expected the folder of a shard set"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message.format(tmp=tmp_path) in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_path_that_the_output_cannot_encode(tmp_path: Path, synthetic: Path) -> None:
    shards = copy_tree(synthetic, tmp_path / "bä\udcff")
    result = run_cli("verify", shards, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert "b\\xe4\\ufffd: no damage found" in result.stdout


def test_help_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["shard", "folder", "--help"])
    assert "--max-reject-ratio" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What progress takes for the time, in its only element."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def run_for_a_minute(stream: io.StringIO, clock: list[float], num_before: int = 0) -> str:
    shown = Progress("sharding", "samples", stream, num_before=num_before)
    for eighth in range(1, 481):
        clock[0] += 0.125
        shown.show(num_before + eighth * 10, num_before + 4800)
    shown.close()
    return stream.getvalue()


def test_log_gets_a_line_every_few_seconds(clock: list[float]) -> None:
    text = run_for_a_minute(io.StringIO(), clock, num_before=500)
    lines = text.splitlines()
    assert "\r" not in text
    assert 10 <= len(lines) <= 14
    assert lines[0] == "sharding: 900 of 5,300 samples, 80 a second, 0:00:55 left"
    assert lines[-1] == "sharding: 5,300 of 5,300 samples, 80 a second"


def test_bytes_a_second_are_shown_where_items_have_a_size(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress("filling", "images", stream, item_bytes=10**8)
    clock[0] += 5
    shown.show(200, 1000)
    assert stream.getvalue() == (
        "filling: 200 of 1,000 images, 40 a second, 4.00 GB/s, 0:00:20 left\n"
    )


def test_terminal_gets_a_bar_in_one_line(clock: list[float]) -> None:
    text = run_for_a_minute(Terminal(), clock)
    assert text.count("\n") == 1
    states = text.strip().split("\r")
    assert 200 < len(states) < 400
    assert len({len(state) for state in states[1:-1]}) == 1
    assert "█" * 15 + "░" * 15 in states[len(states) // 2]


def test_what_is_quick_shows_nothing(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress("sharding", "samples", stream)
    clock[0] += 1
    shown.show(10, 10)
    shown.close()
    assert stream.getvalue() == ""


WITHOUT_PAUSE = """
import sys
from data_prep.__main__ import main
from data_prep.shard_set import progress
progress._BAR_SECONDS = 0.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_command_shows_its_bar_on_a_terminal(tmp_path: Path) -> None:
    """Which it does every 0.2 s, here at each look: a fast machine is done before."""
    leader, follower = pty.openpty()
    words = ("shard", "synthetic", "--output", tmp_path / "x", *SYNTHETIC_OPTIONS)
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_PAUSE, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "\rsharding " in shown
    assert "of 85 samples" in shown
    assert output.startswith(
        f"{tmp_path / 'x'}: 60 train + 25 val samples of 10 classes in 5 shards"
    )


@pytest.mark.slow
def test_log_of_the_command_has_no_carriage_return(tmp_path: Path) -> None:
    result = run_cli("shard", "synthetic", "--output", tmp_path / "x", *SYNTHETIC_OPTIONS)
    assert "\r" not in result.stdout + result.stderr


def test_data_prep_imports_neither_pipeline_nor_launch() -> None:
    modules = sorted((REPOSITORY / "data_prep").glob("*.py"))
    assert modules
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"pipeline", "launch", "torch"}
