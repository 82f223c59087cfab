"""Two nodes on this machine: host name and network of their own, and one cable between them.

What they are made of is the kernel's, and goes with this process however it ends: the mounts are in
a namespace that it has entered by then, and the first process of each node dies with it. Without
the right to make namespaces both nodes are this machine, and meet by loopback.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NUM_NODES = 2

_INSIDE = "UNDER_FIRE_INSIDE"
_DEVICE = "eth0"
_PORT = 29500
_FIRST_PROCESS = "hostname $0 && ip link set lo up && echo ready && exec cat"


def enter_namespaces() -> bool:
    """Run this command anew in a mount namespace of its own; returns whether it is in one."""
    if _INSIDE in os.environ:
        return True
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if not _works([*enter, "unshare", "--net", "--uts", "sh", "-c", _FIRST_PROCESS, "node"]):
        return False
    os.environ[_INSIDE] = "1"
    words = [sys.executable, "-m", "benchmarks.under_fire", *sys.argv[1:]]
    os.execvp(enter[0], [*enter, *words])  # noqa: S606 - without a shell is what is wanted
    return True


def _works(command: Sequence[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0
    return False


@contextlib.contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[None]:
    """A file system of that size at `path`, for the length of the block."""
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class Nodes:
    """Where commands are run; the base is one machine that plays both."""

    host_names: Sequence[str] = (socket.gethostname(),) * NUM_NODES
    device = "lo"
    address = "127.0.0.1"
    pids: Sequence[int] = ()
    """Of processes that are the nodes."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.place = f"{self.address}:{probe.getsockname()[1]}"
        """Where the ranks of all nodes meet."""

    def command_on(self, node: int, words: Sequence[str]) -> list[str]:
        del node
        return list(words)


class SeparateNodes(Nodes):
    """Those of `run_nodes`."""

    host_names = tuple(f"node{number}" for number in range(NUM_NODES))
    device = _DEVICE
    address = "10.99.0.1"

    def __init__(self, first_processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.pids = [process.pid for process in first_processes]
        self.place = f"{self.address}:{_PORT}"
        cable = f"link add {_DEVICE} type veth peer name {_DEVICE} netns {self.pids[1]}"
        self._ip(0, cable)
        for node in range(NUM_NODES):
            self._ip(node, f"addr add 10.99.0.{node + 1}/24 dev {_DEVICE}")
            self._ip(node, f"link set {_DEVICE} up")

    def command_on(self, node: int, words: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.pids[node]}", "--net", "--uts", *words]

    def connect(self, *, is_up: bool) -> None:
        """Plug the cable in or out."""
        self._ip(0, f"link set {_DEVICE} {'up' if is_up else 'down'}")

    def _ip(self, node: int, words: str) -> None:
        command = self.command_on(node, ["ip", *words.split()])
        subprocess.run(command, check=True)


@contextlib.contextmanager
def run_nodes() -> Iterator[SeparateNodes]:
    """Two nodes for the length of the block, of a process that has `enter_namespaces`."""
    with contextlib.ExitStack() as resources:
        first = [resources.enter_context(_first_process(name)) for name in SeparateNodes.host_names]
        yield SeparateNodes(first)


@contextlib.contextmanager
def _first_process(name: str) -> Iterator[subprocess.Popen[bytes]]:
    alive = ["setpriv", "--pdeathsig", "KILL"]  # whatever ends this process
    with subprocess.Popen(
        [*alive, "unshare", "--net", "--uts", "sh", "-c", _FIRST_PROCESS, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n", f"{name} was not started"
            yield child
        finally:
            child.kill()
