"""Memory is that of the processes that are meant, all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.memory import peak_bytes, private_bytes

_MB = 1 << 20
_FILL = f"data = bytearray(b'x') * (64 * {_MB})"
_WITH_CHILD = (
    "import subprocess, sys; "
    f"child = subprocess.Popen([sys.executable, '-c', {_FILL + '; input()'!r}], stdin=-1); "
    f"{_FILL}; import time; time.sleep(1); child.communicate(b'')"
)


def peak_of(code: str) -> int:
    return peak_bytes([sys.executable, "-c", code])[0]


def test_the_peak_is_of_the_whole_tree_and_not_of_its_end() -> None:
    little = peak_of("import time; time.sleep(0.3)")
    one = peak_of(f"import time; {_FILL}; time.sleep(0.5); del data; time.sleep(0.3)")
    two = peak_of(_WITH_CHILD)
    assert 60 * _MB < one - little < 72 * _MB
    assert 120 * _MB < two - little < 144 * _MB


def test_a_command_that_fails_has_no_figures() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        peak_of("raise SystemExit(3)")


def test_private_memory_is_what_a_process_shares_with_no_other() -> None:
    command = [sys.executable, "-c", f"{_FILL}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 64 * _MB < private_bytes(child.pid) < 90 * _MB
        child.communicate(b"\n")
