"""The shard set of an evaluation: the run's own at any place, or another with its classes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from pipeline.config.command_line import with_values
from pipeline.config.data import is_url
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
    have different classes, or if the run's own cannot be read.
    """
    config = _with_shards(settings.config, shards, cache_dir)
    found = own = open_data(config, device, resources)
    if found.manifest_sha256 != settings.manifest_sha256:
        own = _own_shards(run, settings, shards, cache_dir, device, resources)
    if found.manifest.class_names != own.manifest.class_names:
        raise ValueError(
            f"--shards {config.data.shards} has other classes than the shard set of {run.path}: "
            f"{_first_difference(found.manifest.class_names, own.manifest.class_names)}; "
            "give one with the same classes in the same order"
        )
    return found, own


def _with_shards(config: Config, shards: str | None, cache_dir: str | None) -> Config:
    """The configuration for the shard set at `shards`, if that is given."""
    values: dict[str, object] = {}
    if shards is not None:
        values |= {"data.shards": shards, "data.reader": "remote" if is_url(shards) else "tar"}
    if cache_dir is not None:
        values["data.cache_dir"] = cache_dir
    return with_values(config, values, _FLAGS)


def _own_shards(
    run: RunDirectory,
    settings: Settings,
    shards: str | None,
    cache_dir: str | None,
    device: torch.device,
    resources: contextlib.ExitStack,
) -> Data:
    """The shard set that the run was trained on: its classes, and its mean, are the network's."""
    is_remote = settings.config.data.is_remote
    config = _with_shards(settings.config, None, cache_dir if is_remote else None)
    where = config.data.shards
    try:
        own = open_data(config, device, resources)
        fault = "has changed since"
        if own.manifest_sha256 == settings.manifest_sha256:
            return own
    except (OSError, ValueError) as error:
        fault = f"cannot be read ({sentence_of(error)})"
    if shards is None:
        raise ValueError(
            f"the shard set {where} of the run {run.path} {fault}: give --shards with the place "
            "where it is now, or another shard set with the same classes"
        )
    raise ValueError(
        f"--shards {shards} is not the shard set that {run.path} was trained on, and that "
        f"one, {where}, {fault}: its class names and mean are needed, so put it back there"
    )


def _first_difference(found: Sequence[str], expected: Sequence[str]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} in place of {len(expected)}"
    label = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"class {label} is {found[label]!r} in place of {expected[label]!r}"
