"""Checkpoints: complete under their name or not there, verified before use.

    RUN/checkpoints/step-00001950/state.pt          tensors and plain values: weights_only loads it
                                  checkpoint.json   step, size and hash of state.pt
                    best -> step-00001560           the one with most of `val` right; a file with
                                                    its name where there can be no link

    writing     .tmp-step-…/ is filled, synced and read back ──rename──▶ step-…/
    loading     newest step-…/ whose hash is right; a damaged one is passed over, with a warning,
                and becomes damaged-step-…/ once the run goes on without it
    pruning     the newest `keep` and the best stay

A kill at any moment leaves either the old set of checkpoints or the new one.

Longer than 250 lines: all that touches the files of a checkpoint is here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from data_prep.shard_set.files import (
    NO_ROOM,
    TEMPORARY_PREFIX,
    UNSUPPORTED,
    sha256_of,
    sync,
    sync_directory,
    write_atomically,
)
from data_prep.shard_set.typed import read_json
from pipeline.run.torch_file import load_tensors

FORMAT_VERSION = 1
BEST = "best"

_STATE = "state.pt"
FACTS = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,18})")

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another format."""


def save(directory: Path, step: int, state: dict[str, Any]) -> tuple[Path, int]:
    """Write `state`, of tensors and plain values, as the checkpoint of `step`.

    Returns its path and size in bytes. Raises `OSError` if the disk does not take it; what was
    there before is then untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = path_of(directory, step)
    aside = directory / f"{TEMPORARY_PREFIX}{final.name}"
    _remove(aside)
    try:
        num_bytes = _write(aside, step, state)
        replaced = _set_aside(final)
        aside.rename(final)
    except BaseException as error:
        _remove(aside)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            needed, free = num_bytes_of(state) / 1e6, shutil.disk_usage(directory).free / 1e6
            error.strerror = (
                f"{os.strerror(error.errno)}: it needs {needed:,.1f} MB, and {directory} has "
                f"{free:,.1f} MB free"
            )
        raise
    sync_directory(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    return final, num_bytes


def _write(folder: Path, step: int, state: dict[str, Any]) -> int:
    folder.mkdir()
    path = folder / _STATE
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's writer fails once more on its way out
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        sync(file.fileno())
    num_bytes = path.stat().st_size
    facts = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "num_bytes": num_bytes,
        "sha256": sha256_of(path),
    }
    _load_state(path, mapped=True)  # reads back what was written, before it can replace anything
    write_atomically(folder / FACTS, json.dumps(facts, indent=1).encode() + b"\n")
    sync_directory(folder)
    return num_bytes


def num_bytes_of(value: Any) -> int:
    """Of the tensors in a state, which are nearly all of it."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(num_bytes_of, parts)) if isinstance(value, dict | list | tuple) else 0


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint, if it is there, so that it vanishes at once; returns its new path."""
    doomed = folder.with_name(f"{TEMPORARY_PREFIX}removed-{folder.name.lstrip('.')}")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    return doomed


def _remove(folder: Path) -> None:
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed `save`, `prune` or `mark_best` left.

    A checkpoint that made room for another of its step, which has not come, gets its name back.
    """
    removed = f"{TEMPORARY_PREFIX}removed-"
    for path in directory.glob(f"{removed}step-*"):
        final = directory / path.name.removeprefix(removed)
        with contextlib.suppress(CheckpointError):
            verify(path)
            if not final.exists():
                path.rename(final)
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is or would be."""
    return directory / f"step-{step:08d}"


def paths(directory: Path) -> list[Path]:
    """All checkpoints, damaged ones too, newest first."""
    found = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def newest_good(directory: Path) -> Path | None:
    """The newest checkpoint that is whole, or None if there are none at all.

    Damaged ones are passed over with a warning. Raises `CheckpointError` if all are damaged.
    """
    faults = []
    for path in paths(directory):
        try:
            verify(path)
        except CheckpointError as error:
            _log.warning("%s; trying the one before it", error)
            faults.append(str(error))
        else:
            return path
    if faults:
        raise CheckpointError(
            f"every checkpoint in {directory} is damaged ({'; '.join(faults)}): "
            "restore one from a copy, or start again with another --run-dir"
        )
    return None


def verify(path: Path) -> None:
    """Check a checkpoint's size and hash; raises `CheckpointError` saying what is wrong."""
    try:
        facts = read_json((path / FACTS).read_bytes())
        version, num_bytes, sha256 = (
            facts[name] for name in ("format_version", "num_bytes", "sha256")
        )
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: {FACTS} cannot be read ({error.strerror})"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint {path} is damaged: {FACTS} is not as written") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {version}; "
            f"expected {FORMAT_VERSION}: use the version of this program that wrote it"
        )
    try:
        found = (path / _STATE).stat().st_size
        if found != num_bytes:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {_STATE} has {found} bytes, expected {num_bytes}"
            )
        if sha256_of(path / _STATE) != sha256:
            raise CheckpointError(f"checkpoint {path} is damaged: {_STATE} has another hash")
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from None


def load(path: Path, device: torch.device | None = None) -> dict[str, Any]:
    """The state saved at `path`, after it is verified; raises `CheckpointError`."""
    verify(path)
    state = _load_state(path / _STATE, device)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / _STATE} holds no state, but a {type(state).__name__}")
    return state


def _load_state(path: Path, device: torch.device | None = None, *, mapped: bool = False) -> Any:
    try:
        return load_tensors(path, device, mapped=mapped)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def set_aside_later(directory: Path, step: int) -> None:
    """Rename the checkpoints after `step`: they are damaged, as the run goes on from that one.

    Under their old names they would be taken for the newest of those it saves from now on.
    """
    for path in paths(directory):
        if step_of(path) > step:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _log.warning("renamed %s to %s", path, aside.name)


def mark_best(directory: Path, step: int) -> bool:
    """Let `best` name the checkpoint of `step`, at once or not at all; False if it is not there."""
    path = path_of(directory, step)
    if not path.is_dir():
        return False
    best = directory / BEST
    if best.is_dir() and not best.is_symlink():
        reason = "a folder is where the link to the best checkpoint goes; move it away"
        raise FileExistsError(errno.EEXIST, reason, str(best))
    link = directory / f"{TEMPORARY_PREFIX}{BEST}"
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(path.name)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EPERM):
            raise
        write_atomically(best, path.name.encode())  # a file system without links
    else:
        link.replace(best)
    return True


def _marked_best(directory: Path) -> Path:
    """The checkpoint that `best` names, as a link or in words, or where the link would be."""
    best = directory / BEST
    name = best.read_text(errors="replace").strip() if best.is_file() else ""
    return directory / name if _NAME.fullmatch(name) else best


def prune(directory: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best."""
    best = _marked_best(directory).resolve().name
    for path in paths(directory)[keep:]:
        if path.name != best:
            _remove(path)


def named(directory: Path, name: str) -> Path:
    """The checkpoint that `--checkpoint NAME` means: newest, best, a step's number or a path.

    Raises `CheckpointError` if it is not there.
    """
    if name == "newest":
        newest = newest_good(directory)
        if newest is None:
            raise CheckpointError(f"{directory} has no checkpoint yet: train first")
        return newest
    if name == BEST:
        path = _marked_best(directory)
    else:
        path = path_of(directory, int(name)) if name.isdecimal() else Path(name)
    if path.is_dir():
        return path.resolve()
    raise CheckpointError(
        f"no checkpoint '{name}': expected newest, best, a path or a step of "
        f"{', '.join(str(step_of(path)) for path in paths(directory)) or 'none so far'}"
    )


def step_of(path: Path) -> int:
    """The step in the name of one of the `paths`."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])
