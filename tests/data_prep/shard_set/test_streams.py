"""Commands whose output is closed, full, left by its reader or poor in letters; and python -OO."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_prep.raw_data import REPOSITORY, copy_tree
from tests.machine import DEADLINE_SECONDS

COMMANDS = {
    "data_prep": "usage: python -m data_prep [-h] COMMAND ...",
    "launch": "usage: python -m launch [-h] COMMAND ...",
    "pipeline.data.benchmark": "usage: python -m pipeline.data.benchmark",
    "pipeline.doctor": "usage: python -m pipeline.doctor",
    "pipeline.evaluate": "usage: python -m pipeline.evaluate",
    "pipeline.exporter": "usage: python -m pipeline.exporter",
    "pipeline.report": "usage: python -m pipeline.report",
    "pipeline.train": "usage: python -m pipeline.train RECIPE",
}
CLOSED = """
import os, sys
from data_prep.shard_set.streams import open_streams
open_streams()
print("nobody reads this")
print("nor this", file=sys.stderr)
os.write(1, b"nor this")
with open(sys.argv[1], "w") as file:
    file.write(f"{file.fileno() > 2} {os.get_inheritable(1)}")
"""


def in_shell(redirection: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with its output redirected by a shell, in a folder that takes no files."""
    return subprocess.run(
        ["sh", "-c", f'"$0" "$@" {redirection}', sys.executable, *map(str, words)],
        cwd="/proc",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_help_without_docstrings_and_without_a_reader(module: str) -> None:
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-OO", "-m", module, "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"},
    )
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as output:
        first = output.read(len(COMMANDS[module]))
    _, errors = child.communicate(timeout=DEADLINE_SECONDS)
    assert (first.decode(), errors, child.returncode) == (COMMANDS[module], b"", 0)


def test_recipes_and_fields_are_described_without_docstrings() -> None:
    script = "from pipeline.train.command import help_text; print(help_text([]))"
    texts = [in_shell("", *options, "-c", script).stdout for options in ([], ["-OO"])]
    assert texts[0] == texts[1]
    assert "The network and procedure of 2012" in texts[0]


def test_closed_streams_are_nowhere_and_no_files(tmp_path: Path) -> None:
    result = in_shell("<&- >&- 2>&-", "-c", CLOSED, tmp_path / "file")
    assert result.returncode == 0
    assert (tmp_path / "file").read_text() == "True True"


@pytest.mark.parametrize(
    ("redirection", "code", "num_errors"), [(">&-", 1, 1), ("<&- >&- 2>&-", 1, 0), ("| true", 0, 1)]
)
def test_a_command_nobody_listens_to_does_its_work(
    tmp_path: Path, synthetic: Path, redirection: str, code: int, num_errors: int
) -> None:
    shards = copy_tree(synthetic, tmp_path / "shards")
    for path in shards.glob("*.tar"):
        path.write_bytes(b"")
    result = in_shell(redirection, "-m", "data_prep", "verify", shards)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("is damaged (listed above: ") == num_errors
    assert result.stderr.count("\n") == num_errors


def test_output_that_could_not_be_written_is_reported(synthetic: Path) -> None:
    result = in_shell("> /dev/full", "-m", "data_prep", "verify", synthetic)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: standard output could not be written: {os.strerror(errno.ENOSPC)}\n"
    )


HOSTILE = "a\x1b]0;x\x07b\x9b2Jc\u202ed\x7f\x00 \u2066e"
SHOWN = r"a\x1b]0;x\x07b\x9b2Jc\u202ed\x7f\x00 \u2066e"
SAYING = """
import logging, sys
from data_prep.shard_set.streams import open_streams
open_streams()
sys.stdout.reconfigure(encoding="utf-8")
logging.basicConfig(format="%(message)s")
name = sys.argv[1].encode().decode("unicode_escape")
print(name)
logging.warning(name + "\\tü")
"""


def test_names_give_no_orders_to_a_terminal() -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", SAYING, ascii(HOSTILE)[1:-1]]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert terminal.read(1000).decode().splitlines() == [SHOWN]
    assert done.stderr.decode() == f"{SHOWN}\tü\n"
    piped = subprocess.run(command, capture_output=True, env=environment)
    assert piped.stdout.decode() == f"{HOSTILE}\n"  # a program that reads it gets what is there
