"""What a run was computed with: versions, revision and hardware, saved in `RUN/config.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from data_prep.shard_set.files import write_atomically
from pipeline.optim.processor import instruction_sets, processor_name
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.format_version import CONFIG_VERSION
from pipeline.run.settings import Settings


def write_settings(run: RunDirectory, settings: Settings, world: World) -> None:
    """Write `config.json`, with all versions, unless nothing has changed."""
    content = {
        "format_version": CONFIG_VERSION,
        **settings.to_json(),
        "versions": versions(),
        "git_revision": git_revision(),
        "hardware": _hardware(world),
    }
    text = json.dumps(content, indent=1).encode() + b"\n"
    if not run.config.exists() or run.config.read_bytes() != text:
        write_atomically(run.config, text)


def versions() -> dict[str, str]:
    """Versions of the software a run's numbers depend on."""
    return {
        "alexnet-2012": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "numpy": np.__version__,
    }


def package_version() -> str:
    """Of this package; empty in a checkout that is not installed."""
    try:
        return metadata.version("alexnet-2012")
    except metadata.PackageNotFoundError:
        return ""


def git_revision() -> str | None:
    """The commit of this checkout, with a mark if files were changed; None outside of one."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # installed, perhaps below a checkout of something else
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace").strip()  # a tag may be any bytes


def _hardware(world: World) -> str:
    """What computes, by its product name."""
    if world.device.type == "cuda":
        return f"{world.size} × {torch.cuda.get_device_name(world.device)}"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {processor_name()} on each host, {instruction_sets()}"
