"""A remote shard set, staged into a local directory that several jobs may share."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.foreign import INDEX_NAME, describe_manifest
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardSetError,
    parse_json,
    parse_manifest,
    read_manifest,
)
from pipeline.config.data import DataConfig
from pipeline.data.cache.cache_directory import (
    CacheFullError,
    check_locks,
    make_room,
    open_in_use,
    publish,
    staging,
)
from pipeline.data.cache.remote import Content, FetchError, FetchStopped, fetch, location_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LOOK_SECONDS = 0.05
"""Between two looks at what another process does."""

_MOST_JSON_BYTES = 1 << 28
"""Of a manifest; one of a million shards has less."""


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The shard set of a run: on this host, or at a URL and staged into a cache on this host."""

    folder: Path
    """Where its files are, but for shards at a URL, which `cache` stages."""
    manifest: Manifest
    cache: ShardCache | None

    @classmethod
    def opened(cls, config: DataConfig) -> Self:
        """The one that `data.shards` names; raises what `read_manifest` or the cache raises."""
        cache = ShardCache(config) if config.is_remote else None
        folder = Path(config.shards) if cache is None else cache.stage_manifest()
        return cls(folder, read_manifest(folder), cache)


def cached_path(folder: Path, name: str) -> Path:
    """Where the file `name` of the set is cached: names of adopted shards may have folders."""
    return folder / re.sub(r"^\.", "%2E", quote(name, safe=""))


@dataclass(frozen=True, slots=True)
class ShardCache:
    """The shard set at the URL `config.shards`, staged into a folder of `config.cache_dir`.

    What is staged is verified by size and hash on its way and appears whole or not at all. All
    processes that use the directory together keep at most `config.cache_bytes` of shards, and each
    shard is fetched by one of them.

    Methods may be called from any thread. They raise `FetchError` if a file cannot be fetched,
    `CacheFullError` if there is no room, `ShardSetError` if the manifest is not one, `OSError` if
    the directory cannot be used, and `FetchStopped` once `stop` is set.
    """

    config: DataConfig

    def stage_manifest(self) -> Path:
        """Fetch the manifest and all it names but shards; returns the folder they are in.

        Every manifest has a folder of its own, so one that was read before stays as it was.
        """
        directory = Path(self.config.cache_dir)
        where = location_of(self.config.shards, MANIFEST_NAME)
        directory.mkdir(parents=True, exist_ok=True)
        check_locks(directory)
        try:
            text = _fetched_json(where, self.config)
        except FetchError as error:
            raise FetchError(f"{error}; {self._what_is_there()}") from None
        manifest = parse_manifest(text, where)
        if adopted_from := {split.folder for split in manifest.splits.values()} - {None}:
            raise ShardSetError(
                f"{self.config.shards}: its shards lie in {adopted_from.pop()} of the machine that "
                "adopted them; expected beside the manifest: adopt them again with --in-place"
            )
        folder = directory / hashlib.sha256(text).hexdigest()
        folder.mkdir(exist_ok=True)
        statistics = manifest.statistics
        files = {statistics.mean_image_filename: statistics.mean_image_sha256}
        for split in manifest.splits.values():
            files[split.index_filename] = split.index_sha256
            files[split.checksums_filename] = split.checksums_sha256
        for name, sha256 in files.items():
            if name and sha256:
                os.close(self.open_file(folder / name, Content(sha256=sha256), threading.Event()))
        write_atomically(folder / MANIFEST_NAME, text)  # last, as `data_prep` does
        return folder

    def _what_is_there(self) -> str:
        """What the URL seems to be, if it is no shard set's."""
        where = location_of(self.config.shards, INDEX_NAME)
        with contextlib.suppress(FetchError):
            text = _fetched_json(where, dataclasses.replace(self.config, fetch_attempts=1))
            what = describe_manifest(parse_json(text, where))
            return f"what is there is not a shard set: {INDEX_NAME} is {what}"
        return (
            f"a shard set has a {MANIFEST_NAME}: tars without one cannot be used here, make a "
            "shard set of their images with 'python -m data_prep shard'"
        )

    def open_file(
        self,
        path: Path,
        content: Content,
        stop: threading.Event,
        has_room: Callable[[], None] | None = None,
    ) -> int:
        """Open a file of the set for reading, staged now if it is not there.

        A shard stays in the cache until it is closed. To make room, shards that are only expected
        to be read are evicted, and those that are read are waited for. With `has_room` the shard is
        staged ahead, and neither is done; `has_room` is called once there is room for it.
        """
        deadline = math.inf
        while True:
            try:
                with staging(path) as staged:
                    file = open_in_use(path, content)
                    if file is not None:
                        return file
                    if staged is not None:
                        if content.num_bytes is not None:
                            limit, at_once = self.config.cache_bytes, has_room is None
                            make_room(path, staged, content.num_bytes, limit, at_once)
                        if has_room is not None:
                            has_room()
                        location = location_of(self.config.shards, unquote(path.name))
                        fetch(location, staged, content, self.config, stop)
                        return publish(staged, path)
            except CacheFullError:
                patience = self.config.fetch_timeout_seconds if has_room is None else 0.0
                deadline = min(deadline, time.monotonic() + patience)
                if time.monotonic() >= deadline:
                    raise
            else:
                if has_room is not None:
                    has_room()
            if stop.wait(_LOOK_SECONDS):
                raise FetchStopped("nobody waits for the shards any more")


class _Memory(io.BytesIO):
    """For a file of unknown size, from a server that may send for ever."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def write(self, block: ReadableBuffer) -> int:
        if self.tell() > _MOST_JSON_BYTES:
            raise FetchError(
                f"{self._where} has more than {_MOST_JSON_BYTES:,} bytes; expected a manifest"
            )
        return super().write(block)


def _fetched_json(where: str, config: DataConfig) -> bytes:
    """The JSON file at `where`, of which no hash is known."""
    arrived, content = _Memory(where), Content(check=partial(parse_json, path=where))
    fetch(where, arrived, content, config, threading.Event())
    return arrived.getvalue()
