"""A host whose name no server answers for: plain torchrun hangs there without a word."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.training import make_shards, training
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY

_NAME = "no-such-host"
_SERVER = f"127.153.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""Of this process alone: another session may run the same test."""

_ISOLATED = """
hostname "$1"
for name in resolv.conf hosts; do mount --bind "$2/$name" "/etc/$name" || exit 99; done
shift 2
exec "$@"
"""


@contextlib.contextmanager
def silent_server() -> Iterator[None]:
    """A name server that takes every question and answers none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((_SERVER, 53))
        yield


def launch_there(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`python -m launch` in namespaces with another host name and name server."""
    (folder / "resolv.conf").write_text(f"nameserver {_SERVER}\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    namespaces = ["unshare", "--uts", "--mount", "bash", "-c", _ISOLATED, "-", _NAME, str(folder)]
    command = [*namespaces, sys.executable, "-m", "launch", *map(str, words)]
    with silent_server():
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )


@pytest.mark.slow
def test_the_launcher_trains_and_the_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a UTS namespace of its own takes root")
    if subprocess.run(["unshare", "--uts", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    shards = make_shards(tmp_path / "shards")
    words = training(shards, tmp_path / "run", "--max-steps", 1)
    done = launch_there(tmp_path, "local", "--nproc", 2, *words)
    assert done.returncode == 0, done
    examined = launch_there(tmp_path, "doctor", "--shards", shards, "--run-dir", tmp_path)
    assert examined.returncode == 1
    (wrong,) = (line for line in examined.stdout.splitlines() if line.startswith("FAIL"))
    assert wrong.startswith(f"FAIL  host names: {_NAME} does not resolve (")
    assert examined.stderr == f"error: 1 of {examined.stdout.count(chr(10))} checks failed\n"
