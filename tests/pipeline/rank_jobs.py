"""Ranks of a job as real processes over gloo, forked from one that has imported torch already.

torchrun imports torch in every rank anew, which takes seconds; here a job starts in a fraction of
one. Where torchrun itself matters, see `tests.integration.torchrun`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pipeline.config.schema import DistributedConfig
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import free_port

_context = multiprocessing.get_context("forkserver")
# The first optimizer of a process imports torch._dynamo, which takes as long as torch itself.
_context.set_forkserver_preload(
    ["pipeline.train.__main__", "pipeline.evaluate.__main__", "torch._dynamo", __name__]
)


def rank_environment(size: int, rank: int, port: int) -> dict[str, str]:
    """What torchrun would say."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def call_on_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    environments: Sequence[Mapping[str, str]] = (),
) -> list[Any]:
    """What `function(world, *arguments)` returns on each of `size` connected ranks.

    `environments`: further variables of each rank.
    """
    return call_in_processes(size, _connected, function, arguments, environments=environments)


def _connected(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    with connect(LaunchEnvironment.read(), DistributedConfig(device="cpu")) as world:
        return function(world, *arguments)


def call_in_processes(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    environments: Sequence[Mapping[str, str]] = (),
) -> list[Any]:
    """The same of `function(*arguments)` and ranks that have not connected."""
    port = free_port()
    ranks = []
    for rank in range(size):
        receiver, sender = _context.Pipe(duplex=False)
        environment = rank_environment(size, rank, port)
        environment |= environments[rank] if environments else {}
        process = _context.Process(target=_call, args=(environment, sender, function, arguments))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    try:
        assert all(receiver.poll(DEADLINE_SECONDS) for _, receiver in ranks)
        return [pickle.loads(receiver.recv_bytes()) for _, receiver in ranks]
    finally:
        for process, receiver in ranks:
            receiver.close()  # else one that has not been heard would wait for it
            process.join(DEADLINE_SECONDS)
            process.kill()


def _call(
    environment: dict[str, str],
    results: Connection,
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    # Pickled here: a connection sends tensors as handles to memory that ends with the rank.
    results.send_bytes(pickle.dumps(function(*arguments)))


def replaced(words: Sequence[object]) -> list[object]:
    """A command of training in which an option has the value that it was given last."""
    recipe, *rest = words
    last = dict(zip(rest[::2], rest[1::2], strict=True))
    return [recipe, *(word for option in last.items() for word in option)]


class Job:
    """`python -m MODULE ARGUMENTS` on `size` ranks; none of them outlives the block.

    One rank alone runs without a launcher; the last one may get more `words`, and further variables
    in its `environment`, than the others.
    `before` is called in each rank first: there a test can replace functions.
    `outputs` and `errors` are what the ranks have written,
    once the job has been waited for or the block has been left.
    """

    def __init__(
        self,
        size: int,
        module: str,
        arguments: Sequence[object],
        words: Sequence[object] = (),
        *,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.outputs: list[str] = []
        self.errors: list[str] = []
        self.processes: list[ForkServerProcess] = []
        self._logs = tempfile.TemporaryDirectory()
        port = free_port()
        for rank in range(size):
            variables = rank_environment(size, rank, port) if size > 1 else {}
            is_last = rank == size - 1
            own = (*arguments, *words) if is_last else arguments
            own = replaced(own) if module == "pipeline.train" else own
            if is_last and environment is not None:
                variables |= environment
            process = _context.Process(
                target=_be_rank,
                args=(variables, module, [str(word) for word in own], self._log(rank), before),
            )
            process.start()
            self.processes.append(process)

    def _log(self, rank: int) -> Path:
        return Path(self._logs.name, str(rank))

    def wait(self) -> list[int | None]:
        """The exit codes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert not process.is_alive(), "the job hangs"
        self._read_logs()
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """All ranks at one moment: none lives to tell that it has lost another."""
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGSTOP)
        for process in self.processes:
            process.kill()

    def _read_logs(self) -> None:
        logs = [self._log(rank) for rank in range(len(self.processes))]
        self.outputs = [log.with_suffix(".out").read_text() for log in logs]
        self.errors = [log.with_suffix(".err").read_text() for log in logs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for process in self.processes:
            process.join()
        self._read_logs()
        self._logs.cleanup()


def _be_rank(
    environment: dict[str, str],
    module: str,
    arguments: list[str],
    log: Path,
    before: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        with log.with_suffix(suffix).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    if before is not None:
        before()
    command = importlib.import_module(module)
    if hasattr(command, "__path__"):  # a package, as `python -m` takes it
        command = importlib.import_module(f"{module}.__main__")
    sys.exit(command.main(arguments))
