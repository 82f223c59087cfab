"""What the command finds on this machine, and why it cannot begin."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.config.kernel_compiler import compiler_fault
from pipeline.optim.precision import arithmetic_of, mixture
from pipeline.ranks.gpus import gpu_fault
from pipeline.run.ending import process_start_ticks

_FIELDS = "index,name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw"


def fault() -> str | None:
    """Why nothing can be measured on a GPU here; None: it can."""
    if (why := gpu_fault() or compiler_fault()) is not None:
        return why
    found = [arithmetic_of(device) for device in gpus()]
    old = next((one.device for one in found if "bf16" not in one.native), None)
    if old is not None:
        return (
            f"{old} has no bf16, which most parts compute in: take a GPU of compute capability 8.0 "
            "or more, by CUDA_VISIBLE_DEVICES if there is one here"
        )
    return mixture(found)


def age() -> float:
    """Seconds since this process began: before it had imported anything."""
    ticks = process_start_ticks(os.getpid())
    assert ticks is not None, "it is this process"
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def gpus() -> Sequence[torch.device]:
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def facts() -> dict[str, Any]:
    """What the GPUs are."""
    found = [torch.cuda.get_device_properties(device) for device in gpus()]
    return {
        "gpus": [
            {
                "name": one.name,
                "compute_capability": f"{one.major}.{one.minor}",
                "memory_gib": round(one.total_memory / (1 << 30), 1),
                "multiprocessors": one.multi_processor_count,
                "l2_bytes": one.L2_cache_size,
            }
            for one in found
        ],
        "cudnn": torch.backends.cudnn.version(),
    }


def state() -> list[str]:
    """Clocks, temperature and power as the driver's tool says; empty without that."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={_FIELDS}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
