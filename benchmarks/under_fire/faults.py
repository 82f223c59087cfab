"""Causes the faults of a schedule in a job that trains."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import assert_never

from benchmarks.under_fire.inside import SIGNALS
from benchmarks.under_fire.job import RANKS_PER_NODE, Job
from benchmarks.under_fire.nodes import Nodes, SeparateNodes
from benchmarks.under_fire.processes import words_of
from benchmarks.under_fire.schedule import Fault
from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError

FULL_SECONDS = 4.0
CUT_SECONDS = 4.0
"""How long the disk is full, and the cable out."""
_PIECE_BYTES = 1 << 16
_TOP_UP_SECONDS = 0.05


def cause(fault: Fault, job: Job, nodes: Nodes) -> float:
    """Wait until the job trains and can have the fault, and cause it; returns when (Unix time).

    Raises `JobError` if it does not train again.
    """
    job.wait_until(
        lambda: job.trains() and _is_possible(fault, job, nodes),
        f"at work, and ready for {fault.kind}",
    )
    writer, began = job.process_of(fault.rank), time.time()
    pid = -1 if writer is None else writer.pid
    match fault.kind:
        case "kill -9":
            _signal(pid, signal.SIGKILL)
        case "SIGSTOP":
            _signal(pid, signal.SIGSTOP)
        case "SIGTERM":
            _signal(pid, signal.SIGTERM)
        case "exception" | "segfault" | "abort" | "sleep" | "GIL held":
            _signal(pid, SIGNALS[fault.kind])
        case "damaged checkpoint":
            _damage(checkpoint.paths(job.run.checkpoints)[0])
            _signal(pid, signal.SIGKILL)
        case "full disk":
            _fill_disk(job)
        case "partition":
            assert isinstance(nodes, SeparateNodes)
            nodes.connect(is_up=False)
            job.tend_for(CUT_SECONDS)
            nodes.connect(is_up=True)
        case "exporter killed":
            _signal(_exporter(fault, job, nodes), signal.SIGKILL)
        case unknown:
            assert_never(unknown)
    return began


def _is_possible(fault: Fault, job: Job, nodes: Nodes) -> bool:
    """Whether there is what it is to befall, and what the job then goes on with."""
    match fault.kind:
        case "exporter killed":
            return _exporter(fault, job, nodes) > 0
        case "damaged checkpoint":
            return len(checkpoint.paths(job.run.checkpoints)) > 1 and _is_whole(
                checkpoint.paths(job.run.checkpoints)[1]
            )
        case _:
            return True


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return False
    return True


def _signal(pid: int, number: int) -> None:
    """A process that has just ended by itself is none that the fault can befall."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _exporter(fault: Fault, job: Job, nodes: Nodes) -> int:
    """The process of the exporter beside the fault's rank; -1 if there is none."""
    host = nodes.host_names[fault.rank // RANKS_PER_NODE]
    with contextlib.suppress(OSError, ValueError):
        pid = int((job.run.metrics / f"exporter-{host}.lock").read_text().rpartition(" ")[2])
        if "pipeline.exporter" in words_of(pid):
            return pid
    return -1


def _damage(path: Path) -> None:
    """Flip a bit in the middle of the checkpoint's tensors."""
    with (path / "state.pt").open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def _fill_disk(job: Job) -> None:
    """To its last byte, also with what is freed meanwhile."""
    path = job.run.path.with_name("filling")
    end = time.monotonic() + FULL_SECONDS
    try:
        with path.open("wb", buffering=0) as file:
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    while file.write(bytes(_PIECE_BYTES)):
                        pass
                job.tend_for(_TOP_UP_SECONDS)
    finally:
        path.unlink()
