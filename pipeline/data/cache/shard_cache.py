"""A remote shard set, staged into a local directory that several jobs may share."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.foreign import INDEX_NAME, describe_manifest
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Manifest,
    parse_json,
    parse_manifest,
)
from pipeline.config.data import DataConfig
from pipeline.data.cache.cache_directory import (
    CacheFullError,
    check_locks,
    last_staged,
    make_room,
    open_in_use,
    publish,
    staging,
)
from pipeline.data.cache.remote import (
    Content,
    FetchError,
    FetchStopped,
    RetryPolicy,
    check_url,
    fetch,
    location_of,
)

_LOOK_SECONDS = 0.05
"""Between two looks at what another process does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCache:
    """The shard set at `url`, as far as it is in use, in a folder of `directory`.

    What is staged is verified by size and hash on its way and appears whole or not at all. All
    processes that use the directory together keep shards of `max_bytes` at most, and each shard is
    fetched by one of them.

    Methods may be called from any thread. They raise `FetchError` if a file cannot be fetched,
    `CacheFullError` if there is no room, `ShardSetError` if the manifest is not one, `OSError` if
    the directory cannot be used, and `FetchStopped` once `stop` is set.
    """

    url: str
    directory: Path
    max_bytes: int | None
    retry_policy: RetryPolicy

    @classmethod
    def configured(cls, config: DataConfig) -> Self:
        """The cache for `config.shards`, a URL."""
        check_url(config.shards)
        return cls(
            url=config.shards,
            directory=Path(config.cache_dir),
            max_bytes=config.cache_bytes,
            retry_policy=RetryPolicy(
                timeout_seconds=config.fetch_timeout_seconds, attempts=config.fetch_attempts
            ),
        )

    def stage_manifest(self) -> Path:
        """Fetch the manifest and all it names but shards; returns the folder they are in.

        It is a folder of its own for every manifest, so one that was read before stays as it was.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        check_locks(self.directory)
        where = location_of(self.url, MANIFEST_NAME)
        try:
            text = self._text(where, self.retry_policy)
        except FetchError as error:
            raise FetchError(f"{error}; {self._what_is_there()}") from None
        manifest = parse_manifest(text, where)
        folder = self.directory / hashlib.sha256(text).hexdigest()
        folder.mkdir(exist_ok=True)
        for name, sha256 in _small_files(manifest).items():
            os.close(self.open_file(folder / name, Content(sha256=sha256), threading.Event()))
        write_atomically(folder / MANIFEST_NAME, text)  # last, as `data_prep` does
        return folder

    def _what_is_there(self) -> str:
        """What the URL seems to be, if it is no shard set's."""
        where = location_of(self.url, INDEX_NAME)
        with contextlib.suppress(FetchError):
            text = self._text(where, dataclasses.replace(self.retry_policy, attempts=1))
            what = describe_manifest(parse_json(text, where))
            return f"what is there is not a shard set: {INDEX_NAME} is {what}"
        return (
            f"a shard set has a {MANIFEST_NAME}: tars without one cannot be used here, make a "
            "shard set of their images with 'python -m data_prep shard'"
        )

    def _text(self, where: str, retry_policy: RetryPolicy) -> bytes:
        """JSON of which no hash is known."""
        arrived = io.BytesIO()
        check = partial(parse_json, path=where)
        fetch(where, arrived, Content(), retry_policy, threading.Event(), check)
        return arrived.getvalue()

    def open_file(
        self,
        path: Path,
        content: Content,
        stop: threading.Event,
        has_room: Callable[[], None] | None = None,
    ) -> int:
        """Open a file of the set for reading, staged now if it is not there.

        A shard stays in the cache until it is closed. Room that is in use is waited for, that of
        shards that others only expect to use is taken. With `has_room` this one is not needed yet,
        and neither is done; it is called as soon as there is room for the shard, made by anyone.
        """
        begin, full_since = time.time(), math.inf
        patience = self.retry_policy.timeout_seconds if has_room is None else 0.0
        silence = self.retry_policy.silence_seconds
        while True:
            try:
                file = open_in_use(path, content)
                if file is not None:
                    return file
                with staging(path) as staged:
                    if staged is not None:
                        return self._stage(path, content, staged, stop, has_room)
            except CacheFullError:
                full_since = min(full_since, time.time())
                if time.time() >= full_since + patience:
                    raise
            else:
                if has_room is not None:
                    has_room()
                if time.time() > max(begin, last_staged(path)) + silence:
                    raise FetchError(
                        f"another process stages {path} and has made no progress for "
                        f"{silence:g} s; end it ('lslocks' shows which it is), or give another "
                        "data.cache_dir"
                    )
            if stop.wait(_LOOK_SECONDS):
                raise FetchStopped("nobody waits for the shards any more")

    def _stage(
        self,
        path: Path,
        content: Content,
        staged: BinaryIO,
        stop: threading.Event,
        has_room: Callable[[], None] | None,
    ) -> int:
        file = open_in_use(path, content)  # of a process that was faster
        if file is not None:
            return file
        if content.num_bytes is not None:
            at_once = has_room is None
            make_room(path, staged, content.num_bytes, self.max_bytes, at_once)
        if has_room is not None:
            has_room()
        location = location_of(self.url, path.name)
        fetch(location, staged, content, self.retry_policy, stop)
        return publish(staged, path)


def _small_files(manifest: Manifest) -> dict[str, str]:
    """Name and hash of every file but shards that the manifest names."""
    statistics = manifest.statistics
    files = {statistics.mean_image_filename: statistics.mean_image_sha256}
    for split in manifest.splits.values():
        files[split.index_filename] = split.index_sha256
        files[split.checksums_filename] = split.checksums_sha256
    return {name: sha256 for name, sha256 in files.items() if name and sha256}
