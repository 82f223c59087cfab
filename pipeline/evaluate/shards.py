"""The shard set of an evaluation: the run's own at any place, or another with its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_prep.shard_set.manifest import manifest_sha256
from pipeline.config.command_line import with_values
from pipeline.config.data import is_url
from pipeline.config.schema import Config
from pipeline.data.augment.normalize import Normalizer, build_normalizer
from pipeline.data.cache.shard_set import ShardSet
from pipeline.ranks.failure import sentence_of
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings

_FLAGS = {"data.shards": "--shards", "data.cache_dir": "--cache-dir"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedShards:
    """The shard set that is evaluated, and what its images are normalized by."""

    config: Config
    """That of the run, with this shard set."""
    shards: ShardSet
    manifest_sha256: str
    normalizer: Normalizer
    """By the mean of the run's own shard set, which the network learned with."""
    is_own: bool
    """Whether it is the one that the run trains on."""


def open_shards(
    run: RunDirectory,
    settings: Settings,
    shards: str | None,
    cache_dir: str | None,
    device: torch.device,
) -> EvaluatedShards:
    """Open what `--shards` and `--cache-dir` name, or else the shard set of the run.

    Raises `ValueError` if it is another one than the run's and has other classes, or if it is and
    the run's own cannot be read.
    """
    config = _with_shards(settings.config, shards, cache_dir)
    found = ShardSet.opened(config.data)
    sha256 = manifest_sha256(found.folder)
    is_own = sha256 == settings.manifest_sha256
    own = found if is_own else _own_shards(run, settings, shards, cache_dir)
    if found.manifest.class_names != own.manifest.class_names:
        raise ValueError(
            f"--shards {config.data.shards} has other classes than the shard set of {run.path}: "
            f"{_first_difference(found.manifest.class_names, own.manifest.class_names)}; "
            "give one with the same classes in the same order"
        )
    return EvaluatedShards(
        config=config,
        shards=found,
        manifest_sha256=sha256,
        normalizer=build_normalizer(config.augment, own.manifest, own.folder, device),
        is_own=is_own,
    )


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
) -> ShardSet:
    """The shard set that the run was trained on: its classes, and its mean, are the network's."""
    is_remote = settings.config.data.is_remote
    config = _with_shards(settings.config, None, cache_dir if is_remote else None)
    where = config.data.shards
    try:
        own = ShardSet.opened(config.data)
        fault = "has changed since"
        if manifest_sha256(own.folder) == settings.manifest_sha256:
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
