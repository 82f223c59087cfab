"""Memory is that of the processes that are meant, all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from benchmarks.memory import peak_bytes, private_bytes

_MB = 1 << 20
_FILL = f"data = bytearray(b'x') * (64 * {_MB})"
_CHILD = f"{_FILL}; print(flush=True); input()"
_WAIT = (
    "import pathlib, sys, time; folder = pathlib.Path(sys.argv[1]); (folder / 'ready').touch()\n"
    "while not (folder / 'seen').exists(): time.sleep(0.01)\n"
)
_WITH_CHILD = (
    f"import subprocess, sys; command = [sys.executable, '-c', {_CHILD!r}]\n"
    "child = subprocess.Popen(command, stdin=-1, stdout=-1); child.stdout.readline()\n"
    f"{_FILL}\n{_WAIT}child.communicate(b'\\n')"
)


def peak_of(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a program that waits until its memory was read, however long that takes."""
    folder.mkdir()
    tree_bytes = memory.tree_bytes

    def seen(pid: int) -> int:
        is_ready = (folder / "ready").exists()
        found = tree_bytes(pid)
        if is_ready:
            (folder / "seen").touch()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(memory, "tree_bytes", seen)
        return peak_bytes([sys.executable, "-c", code, folder])[0]


def test_the_peak_is_of_the_whole_tree_and_not_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = peak_of(_WAIT, tmp_path / "little", monkeypatch)
    one = peak_of(f"{_FILL}\n{_WAIT}del data; time.sleep(0.3)", tmp_path / "one", monkeypatch)
    two = peak_of(_WITH_CHILD, tmp_path / "two", monkeypatch)
    assert 60 * _MB < one - little < 72 * _MB
    assert 120 * _MB < two - little < 144 * _MB


def test_a_command_that_fails_has_no_figures() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        peak_bytes([sys.executable, "-c", "raise SystemExit(3)"])


def test_private_memory_is_what_a_process_shares_with_no_other() -> None:
    command = [sys.executable, "-c", f"{_FILL}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 64 * _MB < private_bytes(child.pid) < 90 * _MB
        child.communicate(b"\n")
