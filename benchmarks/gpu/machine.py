"""What the command finds on this machine, and why it cannot begin."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.optim.precision import arithmetic_of, mixture
from pipeline.ranks.gpus import gpu_fault

_FIELDS = "index,name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw"


def fault() -> str | None:
    """Why nothing can be measured on a GPU here; None: it can."""
    if (why := gpu_fault()) is not None:
        return why
    if importlib.util.find_spec("triton") is None:
        return "Triton, which the kernels are written in, is not installed: pip install triton"
    return mixture([arithmetic_of(device) for device in gpus()])


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
