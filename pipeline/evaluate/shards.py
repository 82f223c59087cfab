"""The shard set of an evaluation: the run's own at any place, or another with its classes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from pipeline.config.command_line import with_values
from pipeline.config.data import is_command, is_url
from pipeline.config.schema import Config
from pipeline.data.open import Data, open_data
from pipeline.ranks.failure import sentence_of
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings

_FLAGS = {"data.shards": "--shards", "data.cache_dir": "--cache-dir"}


def open_shards(
    run: RunDirectory,
    settings: Settings,
    shards: str | None,
    cache_dir: str | None,
    device: torch.device,
    resources: contextlib.ExitStack,
) -> tuple[Data, Data]:
    """Open what `--shards` and `--cache-dir` name, or else the shard set of the run.

    Returns it and the run's own, which may be the same. Raises `ValueError` if they are two and
    have different classes, or if the run's own cannot be read; also if a command fetches it that
    only the run names, which may be anybody's.
    """
    config = _with_shards(settings.config, shards, cache_dir)
    found = _opened(config, device, resources, given=shards)
    if found.manifest_sha256 == settings.manifest_sha256:
        return found, found
    if shards is None:
        raise ValueError(
            f"the shard set {config.data.shards} of the run {run.path} has changed since: give "
            "--shards with the place where it is now, or another shard set with the same classes"
        )
    cache = cache_dir if settings.config.data.is_remote else None
    config = _with_shards(settings.config, None, cache)
    fault = "has changed since"
    try:
        own = _opened(config, device, resources, given=shards)
    except (OSError, ValueError) as error:
        fault = f"cannot be read ({sentence_of(error)})"
    else:
        if own.manifest_sha256 == settings.manifest_sha256:
            _check_classes(found.manifest.class_names, own.manifest.class_names, shards, run)
            return found, own
    raise ValueError(
        f"--shards {shards} is not the shard set that {run.path} was trained on, and that one, "
        f"{config.data.shards}, {fault}: its class names and mean are needed, so put it back there"
    )


def _opened(
    config: Config, device: torch.device, resources: contextlib.ExitStack, *, given: str | None
) -> Data:
    if is_command(config.data.shards) and config.data.shards != given:
        raise ValueError(
            f"{config.data.shards} is a command, and stands only in the files of the run: if you "
            "know it, give it as --shards"
        )
    return open_data(config, device, resources)


def _with_shards(config: Config, shards: str | None, cache_dir: str | None) -> Config:
    """The configuration for the shard set at `shards`, if that is given."""
    values: dict[str, object] = {}
    if shards is not None:
        values |= {"data.shards": shards, "data.reader": "remote" if is_url(shards) else "tar"}
    if cache_dir is not None:
        values["data.cache_dir"] = cache_dir
    return with_values(config, values, _FLAGS)


def _check_classes(
    found: Sequence[str], expected: Sequence[str], shards: str, run: RunDirectory
) -> None:
    if found == expected:
        return
    difference = f"{len(found)} in place of {len(expected)}"
    if len(found) == len(expected):
        label = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        difference = f"class {label} is {found[label]!r} in place of {expected[label]!r}"
    raise ValueError(
        f"--shards {shards} has other classes than the shard set of {run.path}: {difference}; "
        "give one with the same classes in the same order"
    )
