"""The shard set of a run: on this host, or at a URL and staged into a cache on this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from data_prep.shard_set.manifest import Manifest, read_manifest
from pipeline.config.data import DataConfig
from pipeline.data.cache.shard_cache import ShardCache


@dataclass(frozen=True, slots=True)
class ShardSet:
    """Where its files are, but for shards at a URL, which `cache` stages."""

    folder: Path
    manifest: Manifest
    cache: ShardCache | None

    @classmethod
    def opened(cls, config: DataConfig) -> Self:
        """The one that `data.shards` names; raises what `read_manifest` or the cache raises."""
        if not config.is_remote:
            folder = Path(config.shards)
            return cls(folder, read_manifest(folder), None)
        cache = ShardCache.configured(config)
        folder = cache.stage_manifest()
        return cls(folder, read_manifest(folder), cache)
