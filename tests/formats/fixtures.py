"""What is in `tests/formats/v1` and the like, and the commands that it is made and compared with.

images/              raw images in folders, the source of some shard sets
shards/NAME/         a shard set of each of `CONVERSIONS`, and SHARDS.inputs.npz beside it
begun/               one half of the conversion `HALVES`, which the other half finishes
NAME.beton.xz        one file of the shard set of that name
run/                 a run of several attempts, its checkpoints in checkpoints.tar.xz
expected.json        what commands say of that run
networks.json        the layout of a checkpoint of each of `NETWORKS`: see `states`
weights.json         weights and losses of `WEIGHTS` and of the run when it goes on
libraries.json       versions of all that decides bytes
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import features

from launch.__main__ import main as launch

REPOSITORY = Path(__file__).parents[2]
VERSIONS = sorted(Path(__file__).parent.glob("v*"))
"""All that must be read; what is written must be as the last one."""

MODIFIED_SECONDS = 1_500_000_000
"""When the images were written, which git does not keep."""

_SYNTHETIC = ("synthetic", "--num-train", 24, "--num-val", 10, "--samples-per-shard", 10)

CONVERSIONS: Mapping[str, Sequence[object]] = {
    "rgb": (*_SYNTHETIC, "--encoding", "rgb", "--seed", 3),
    "jpeg": (*_SYNTHETIC, "--encoding", "jpeg", "--seed", 4, "--jpeg-quality", 80),
    "sizes": ("folder", "--seed", 5, "--samples-per-shard", 5, "--name", "pictures of all kinds"),
    "scaled": ("folder", "--seed", 6, "--size", 40, "--jpeg-quality", 90),
    "pixels": ("folder", "--encoding", "rgb", "--size", 32, "--samples-per-shard", 8),
    "planes": ("folder", "--encoding", "yuv420", "--size", 32, "--samples-per-shard", 8),
}
"""Options of `data_prep shard`, by the name of the shard set; `folder` reads `images`."""

HALVES = "jpeg"
BETONS = ("jpeg", "pixels")
LARGE = ("folder", "--encoding", "rgb", "--size", 227)
"""A shard set for the networks that take large images; too large to be kept."""

_STEPWISE = ("--log_every_steps", 1, "--metrics.exporter", "false", "--precision", "fp32")
_SHORT = (*_STEPWISE, "--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0)

RUN: Sequence[object] = (
    *("cifar10", *_STEPWISE, "--global_batch_size", 8, "--schedule.name", "constant"),
    *("--schedule.warmup_ratio", 0, "--optim.learning_rate", 0.0625),
    *("--evaluation.every_epochs", 2, "--evaluation.block_size", 4),
    *("--checkpoint.every_epochs", 2, "--not_learning_after_samples", 100),
)
"""The run's options, on the shard set `rgb`; the rest of a command differs between attempts."""
RUN_SHARDS = "rgb"
RUN_EPOCHS = 20
STEPS_PER_EPOCH = 3
MORE_EPOCHS = 22
"""How far the run goes on."""

_LIGHT = (*_SHORT, "--global_batch_size", 2, "--optim.momentum", 0)

NETWORKS: Mapping[str, Sequence[object]] = {
    "alexnet_2012": ("alexnet_2012", *_LIGHT),
    "alexnet_2012, split": ("alexnet_2012", *_SHORT, "--global_batch_size", 2),
    "alexnet_2014": ("alexnet_2014", *_LIGHT),
    "alexnet_single": ("alexnet_single", *_LIGHT),
    "alexnet_bn": ("alexnet_bn", *_LIGHT),
    "alexnet_cifar": ("cifar10", *_SHORT, "--global_batch_size", 8),
    "alexnet_cifar, adam": ("cifar10_blog", *_SHORT, "--global_batch_size", 8),
    "alexnet_cifar, adamw": (
        *("cifar10", *_SHORT, "--global_batch_size", 8),
        *("--optim.name", "adamw", "--optim.learning_rate", 0.001),
    ),
    "alexnet_cifar, fp16": ("cifar10", *_SHORT, "--global_batch_size", 8, "--precision", "fp16"),
}
"""Options of a short run of each network, optimizer and kind of state. Large ones without momentum
have half of the numbers to save."""
SPLIT = "alexnet_2012, split"
"""Saved by one rank, and gone on from by two with a column each."""
SMALL = "alexnet_cifar"
"""How the names of those begin that take the images of `rgb`; the others take `LARGE`."""

_GENTLE = ("--optim.learning_rate", 0.001)

WEIGHTS: Mapping[str, Sequence[object]] = {
    "cifar10": ("cifar10", *_SHORT, *_GENTLE, "--global_batch_size", 8, "--max-steps", 4),
    "alexnet_2012": ("alexnet_2012", *_SHORT, *_GENTLE, "--global_batch_size", 4, "--max-steps", 3),
}
"""Runs whose weights are compared; the shard sets are as for `NETWORKS`. At small rates a
difference in the last bits stays one."""
CONTINUED = "continued"
"""Name in weights.json of the run's weights once it has gone on."""

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Environment in which a processor with AVX-512 computes as one without."""


def run_module(
    module: str,
    *arguments: object,
    code: int = 0,
    environment: Mapping[str, str] | None = None,
    on_one_core: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`, which must exit with `code`.

    On one core the order of additions is the same on every machine.
    """
    done = subprocess.run(
        command(module, *arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        preexec_fn=keep_to_one_core if on_one_core else None,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def keep_to_one_core() -> None:
    """Keep this process to one core; so the number of threads is 1 on every machine."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def shard(images: Path, output: Path, options: Sequence[object], *more: object) -> None:
    """Make, or finish, a shard set of `CONVERSIONS` or `LARGE`."""
    given = ("--input", images) if options[0] == "folder" else ()
    run_module("data_prep", "shard", *options, *given, "--output", output, "--workers", 1, *more)


def shard_in_halves(images: Path, output: Path, *halves: int) -> None:
    """The tasks of these numbers, of two."""
    for half in halves:
        shard(images, output, CONVERSIONS[HALVES], "--num-tasks", 2, "--task", half)


def copy_images(version: Path, target: Path) -> Path:
    """The raw images as they were when they were converted."""
    shutil.copytree(version / "images", target)
    for path in target.rglob("*"):
        os.utime(path, (MODIFIED_SECONDS, MODIFIED_SECONDS))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_beton(version: Path, name: str, folder: Path) -> Path:
    """The `.beton` of that shard set, in `folder`."""
    path = folder / f"{name}.beton"
    with lzma.open(version / f"{name}.beton.xz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return path


def unpack_run(version: Path, folder: Path) -> Path:
    """The run directory, in `folder`."""
    run = folder / "run"
    shutil.copytree(version / "run", run)
    packed = run / "checkpoints.tar.xz"
    with tarfile.open(packed) as archive:
        archive.extractall(run, filter="data")
    packed.unlink()
    return run


def rows_of(run: Path) -> list[dict[str, Any]]:
    """All rows of the run's events, as they are in the file, but one that is just being written."""
    content = (run / "events.jsonl").read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n")].splitlines()]


def libraries() -> dict[str, str]:
    """Versions of all that decides the bytes of shards, and the bits of weights."""
    try:
        numba = metadata.version("numba")
    except metadata.PackageNotFoundError:
        numba = "none"
    return {
        "pillow": metadata.version("pillow"),
        "libjpeg-turbo of Pillow": str(features.version("libjpeg_turbo")),
        "simplejpeg": metadata.version("simplejpeg"),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "numba": numba,
    }


def machine_class(environment: Mapping[str, str]) -> str:
    """All that decides the bits of sums of floats on one core."""
    found = dict.fromkeys(("vendor_id", "cpu family", "model"), "unknown")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in found:
            found[name.strip()] = value.strip()
    sets = environment.get("ATEN_CPU_CAPABILITY") or torch.backends.cpu.get_cpu_capability()
    versions = libraries()
    return (
        f"torch {versions['torch']}, numba {versions['numba']}, {platform.machine()} "
        f"{found['vendor_id']} family {found['cpu family']} model {found['model']}, {sets}"
    )


def ends_of_attempts(run: Path) -> list[int]:
    """How many rows the events had when each attempt had left, and after all that came then."""
    rows = rows_of(run)
    starts = [place for place, row in enumerate(rows) if row["kind"] == "run"]
    last = max(place for place, row in enumerate(rows) if row["kind"] == "end") + 1
    return [*starts[1:], last, len(rows)]


def words_of(run: Path, num_rows: int, folder: Path) -> dict[str, Any]:
    """What `launch status` and `outcome` say of a run that has only its first `num_rows` rows.

    In the words of when the fixtures were made, and of where that was.
    """
    folder.mkdir()
    shutil.copy(run / "config.json", folder)
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines[:num_rows]))
    text = _launch("status", folder).replace(str(folder), "/tmp/alexnet-2012-formats/run")
    newer = ("explain ", "time ")
    lines_then = (line for line in text.splitlines() if not line.startswith(newer))
    status = [re.sub("on 1 rank$", "on 1 ranks", _ageless(line)) for line in lines_then]
    return {"status": status, "outcome": _launch("outcome", folder).strip()}


def _launch(word: str, run: Path) -> str:
    """What `python -m launch` says."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert launch([word, str(run)]) == 0
    return output.getvalue()


def _ageless(line: str) -> str:
    return re.sub(r"\d+ s (ago|old)", r"N s \1", line)
