"""`RUN/config.json`: what a run computes and with what, and the check that it goes on with that."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from data_prep.files import write_atomically
from data_prep.manifest import MANIFEST_NAME
from pipeline import checkpoint
from pipeline.config import Config, Precision
from pipeline.data.partition import steps_of_epoch
from pipeline.distributed import World
from pipeline.format_version import CONFIG_VERSION, check_format_version
from pipeline.length import why_not
from pipeline.processor import instruction_sets, processor_name
from pipeline.run_directory import RunDirectory
from pipeline.saved_config import differences, from_json, to_json

_FIELDS = {"recipe": str, "config": dict, "manifest_sha256": str}
"""What `config.json` has at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What `config.json` says."""

    recipe: str
    config: Config
    manifest_sha256: str
    forked_from: Mapping[str, Any] | None = None
    """Of a run that began at another one's checkpoint: source, as `--fork-from` had it, and the
    checkpoint that this was."""

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "config": to_json(self.config),
            "manifest_sha256": self.manifest_sha256,
            "forked_from": self.forked_from,
        }

    def check_continues(self, saved: Mapping[str, Any], where: Path) -> None:
        """Raise `ValueError` if what was `saved` at `where` is of a run that computes otherwise.

        Its length may be another one: whether that can be is for `check_same_run`.
        """
        found = differences(self.config, saved["config"], at_any_length=True)
        if found:  # then its length is one of them
            found = differences(self.config, saved["config"])
        if found and saved["recipe"] != self.recipe:
            raise ValueError(
                f"{where} belongs to a run of the recipe {saved['recipe']}, and this one is "
                f"{self.recipe}: use another --run-dir, or {saved['recipe']} with the same options "
                "as before"
            )
        if found:
            raise ValueError(
                f"{where} belongs to a run with another configuration ({'; '.join(found)}): "
                "use another --run-dir (with --fork-from to begin at this run's weights), or the "
                "same options as before"
            )
        check_shard_set(
            saved["manifest_sha256"], self.manifest_sha256, self.config.data.shards, where
        )


def check_shard_set(saved_sha256: str, found_sha256: str, shards: str, where: Path) -> None:
    """Raise `ValueError` if `where` belongs to a run on another shard set than `shards`."""
    if found_sha256 != saved_sha256:
        raise ValueError(
            f"{where} belongs to a run on another shard set: its {MANIFEST_NAME} had the hash "
            f"{saved_sha256[:8]}…, that of {shards} has {found_sha256[:8]}…; "
            "use another --run-dir, or the shard set as it was"
        )


def read_settings(run: RunDirectory) -> Settings:
    """Read `config.json`; raises `ValueError` if it is not there or not of this version."""
    saved = _read(run)
    if saved is None:
        raise ValueError(
            f"{run.path} is not a run directory: it has no {run.config.name}; "
            "give the --run-dir of a training run"
        )
    return Settings(
        recipe=saved["recipe"],
        config=from_json(saved["config"]),
        manifest_sha256=saved["manifest_sha256"],
        forked_from=saved.get("forked_from"),
    )


def _read(run: RunDirectory) -> dict[str, Any] | None:
    try:
        saved = json.loads(run.config.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{run.config} is damaged ({error}): restore it from a copy") from None
    if not isinstance(saved, dict) or not all(
        isinstance(saved.get(name), kind) for name, kind in _FIELDS.items()
    ):
        raise ValueError(
            f"{run.config} is damaged (of {', '.join(_FIELDS)} one is missing or not of its type): "
            "restore it from a copy"
        )
    check_format_version(saved.get("format_version", 1), CONFIG_VERSION, run.config)
    return saved


def kept_precision(run: RunDirectory) -> Precision | None:
    """The precision of the run that goes on in the directory; None if there is no run yet.

    Raises `ValueError` if `config.json` is damaged.
    """
    saved = _read(run)
    if saved is None or not checkpoint.paths(run.checkpoints):
        return None
    found = saved["config"].get("precision")
    return next((known for known in get_args(Precision) if known == found), None)


def forked_from(run: RunDirectory) -> Mapping[str, Any] | None:
    """`Settings.forked_from` of the run in the directory. Raises `ValueError`."""
    saved = _read(run)
    return None if saved is None else saved.get("forked_from")


def check_same_run(
    run: RunDirectory, settings: Settings, *, num_samples: int, fork_from: str | None = None
) -> None:
    """Raise `ValueError` if the run directory is that of a run that computes something else.

    One without a checkpoint is that of no run yet: a mistake that ends its first steps can be
    mended. `num_samples` are those of an epoch, `fork_from` is the option.
    """
    saved, paths = _read(run), checkpoint.paths(run.checkpoints)
    if saved is None or not paths:
        return
    settings.check_continues(saved, run.path)
    config, was_epochs = settings.config, saved["config"]["epochs"]
    steps_per_epoch = steps_of_epoch(
        num_samples, config.global_batch_size, drop_last=config.data.drop_last
    )
    done = checkpoint.step_of(paths[0])
    reason = why_not(config, was_epochs, steps_per_epoch, done)
    if reason is not None:
        raise ValueError(
            f"{run.path} belongs to a run of {was_epochs:g} epochs, which cannot become one of "
            f"{config.epochs:g}: {reason}; start a new run from its weights with "
            f"--fork-from {run.path} and another --run-dir"
        )
    began = (saved.get("forked_from") or {}).get("source")
    if fork_from is not None and fork_from != began:
        raise ValueError(
            f"{run.path} is a run that began {f'at {began}' if began else 'with fresh weights'}, "
            f"and --fork-from is {fork_from}: give another --run-dir for a new run"
        )


def write_settings(run: RunDirectory, settings: Settings, world: World) -> None:
    """Write `config.json`, with the versions of everything that computes, if anything is new."""
    content = {"format_version": CONFIG_VERSION} | settings.to_json()
    content |= {
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
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed, perhaps below a checkout of something else
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _hardware(world: World) -> str:
    """What computes, as its maker calls it."""
    if world.device.type == "cuda":
        return f"{world.size} × {torch.cuda.get_device_name(world.device)}"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {processor_name()} on each host, {instruction_sets()}"
