"""Shards of a remote shard set, staged into a local directory that several jobs may share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from data_prep.shard_set.files import atomic_writer, describe, sha256_of, write_atomically
from data_prep.shard_set.foreign import INDEX_NAME, describe_manifest
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardSetError,
    parse_json,
    parse_manifest,
)
from pipeline.config.data import DataConfig
from pipeline.data.cache.cache_directory import (
    CacheFullError,
    clear,
    has_room,
    is_room_wanted,
    mark_used,
    open_in_use,
    open_staged,
    reserve,
    staged_parts,
    staging,
    wanting_room,
)
from pipeline.data.cache.open_files import raise_file_limit
from pipeline.data.cache.remote import (
    Content,
    FetchCost,
    FetchError,
    FetchStopped,
    RetryPolicy,
    check_url,
    fetch,
    location_of,
)

_LOOK_SECONDS = 0.05
"""Between two looks at what another process does."""
_STREAMS = 4
"""Shards that are staged ahead at the same time: one connection rarely fills a line."""
_AGAIN_SECONDS = 5.0
"""Between two tries to stage ahead what could not be."""
_ROOM_SECONDS = 0.5
"""Between two looks whether another process has made room."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CacheCost:
    """What this process did for the cache so far."""

    fetched: FetchCost = field(default_factory=FetchCost)
    num_staged_shards: int = 0
    num_evicted_shards: int = 0
    """To make room; they may have been staged by any process."""


class ShardCache:
    """The shard set at `url`, as far as it is in use, in a folder of `directory`.

    What is staged is verified by size and hash on its way and appears whole or not at all. All
    processes that use the directory together keep shards of `max_bytes` at most, and each shard is
    fetched by one of them. A shard that `get`, `descriptor` or `expect` has staged is in use, and
    stays, until `release` or `close`; of the others the ones go first that were not used for
    longest.

    Methods may be called from any thread. They raise `FetchError` if a file cannot be fetched,
    `CacheFullError` if there is no room, `ShardSetError` if the manifest is not one, and `OSError`
    if the directory cannot be used.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        max_bytes: int | None,
        timeout_seconds: float,
        attempts: int,
    ) -> None:
        check_url(url)
        self._url = url
        self._directory = directory
        self._max_bytes = max_bytes
        self._retry_policy = RetryPolicy(timeout_seconds=timeout_seconds, attempts=attempts)
        self._set: tuple[Path, Manifest] | None = None
        self._in_use: dict[tuple[str, int], int] = {}
        self._ahead: dict[tuple[str, int], int] = {}
        """Of those in use the ones nobody has asked for yet, with their places in the plan."""
        self._cost = CacheCost()
        self._lock = threading.Lock()  # of the three above
        self._threads: list[threading.Thread] = []
        self._room = threading.Event()
        self._stop = threading.Event()
        raise_file_limit()

    @classmethod
    def configured(cls, config: DataConfig) -> Self:
        """The cache for `config.shards`, a URL."""
        return cls(
            config.shards,
            Path(config.cache_dir),
            max_bytes=config.cache_bytes,
            timeout_seconds=config.fetch_timeout_seconds,
            attempts=config.fetch_attempts,
        )

    @property
    def is_closed(self) -> bool:
        return self._stop.is_set()

    @property
    def cost(self) -> CacheCost:
        with self._lock:
            return copy.deepcopy(self._cost)

    def stage_manifest(self) -> Path:
        """Fetch the manifest and all it names but shards; returns the folder they are in.

        It is a folder of its own for every manifest, so one that was read before stays as it was.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        arrived = io.BytesIO()
        where = location_of(self._url, MANIFEST_NAME)
        anything = Content(num_bytes=None, sha256=None)
        try:
            self._fetch(MANIFEST_NAME, arrived, anything, lambda text: parse_json(text, where))
        except FetchError as error:
            raise FetchError(f"{error}; {self._what_is_there()}") from None
        text = arrived.getvalue()
        manifest = parse_manifest(text, where)
        folder = self._directory / hashlib.sha256(text).hexdigest()
        watch = _Watch(folder, lambda: _state(folder.glob("*")), self._retry_policy)
        while not _is_complete(folder, manifest):
            with staging(folder) as is_ours:
                if is_ours:
                    self._stage_set(folder, manifest, text)
                    continue
            watch.look()
            self._pause(_LOOK_SECONDS)
        self._set = folder, manifest
        return folder

    def _what_is_there(self) -> str:
        """What the URL seems to be, if it is no shard set's."""
        arrived, where = io.BytesIO(), location_of(self._url, INDEX_NAME)
        once = dataclasses.replace(self._retry_policy, attempts=1)
        anything = Content(num_bytes=None, sha256=None)
        with contextlib.suppress(FetchError, ShardSetError):
            fetch(where, arrived, anything, once, self._stop, FetchCost())
            what = describe_manifest(parse_json(arrived.getvalue(), where))
            return f"what is there is not a shard set: {INDEX_NAME} is {what}"
        return (
            f"a shard set has a {MANIFEST_NAME}: tars without one cannot be used here, make a "
            "shard set of their images with 'python -m data_prep shard'"
        )

    def _stage_set(self, folder: Path, manifest: Manifest, text: bytes) -> None:
        """Fetch what is missing; the manifest is put there last, as `data_prep` does."""
        folder.mkdir(exist_ok=True)
        for name, sha256 in _small_files(manifest).items():
            path = folder / name
            clear(path)
            with atomic_writer(path) as file:
                self._fetch(name, file, Content(num_bytes=None, sha256=sha256))
        clear(folder / MANIFEST_NAME)
        write_atomically(folder / MANIFEST_NAME, text)

    def _fetch(
        self,
        name: str,
        file: BinaryIO,
        content: Content,
        check: Callable[[bytes], object] | None = None,
    ) -> None:
        cost = FetchCost()
        try:
            location = location_of(self._url, name)
            fetch(location, file, content, self._retry_policy, self._stop, cost, check)
        finally:
            with self._lock:
                self._cost.fetched.add(cost)

    def get(self, split: str, number: int) -> Path:
        """The local file of a shard, staged now if it is not there."""
        self.descriptor(split, number)
        return self._path(split, number)

    def descriptor(self, split: str, number: int) -> int:
        """The shard as an open file for positioned reads, staged now if it is not there.

        It is closed by `release`.
        """
        try:
            return self._use(split, number)
        except CacheFullError:
            pass
        deadline = time.monotonic() + self._retry_policy.timeout_seconds
        while True:
            with wanting_room(self._directory):
                self._give_way()
                try:
                    return self._use(split, number)
                except CacheFullError:
                    if time.monotonic() > deadline:
                        raise
                self._pause(_LOOK_SECONDS)

    def _path(self, split: str, number: int) -> Path:
        assert self._set is not None, "stage_manifest comes first"
        folder, manifest = self._set
        return folder / manifest.split(split).filenames[number]

    def _use(self, split: str, number: int, ahead: _Ahead | None = None) -> int:
        shard = split, number
        found = self._find_in_use(shard, is_asked_for=ahead is None)
        if found is not None:
            return found
        handle = self._open(split, number, ahead)
        with self._lock:
            if not self._stop.is_set() and shard not in self._in_use:
                self._in_use[shard] = handle
                if ahead is not None:
                    self._ahead[shard] = ahead.place
                return handle
        os.close(handle)
        self._pause(0)
        return self._use(split, number, ahead)  # another thread was faster

    def _find_in_use(self, shard: tuple[str, int], *, is_asked_for: bool) -> int | None:
        with self._lock:
            if is_asked_for:
                self._ahead.pop(shard, None)
            return self._in_use.get(shard)

    def _open(self, split: str, number: int, ahead: _Ahead | None) -> int:
        """Open the shard as one in use, staged by this process or another one."""
        path, expected = self._path(split, number), self._content(split, number)
        assert expected.num_bytes is not None
        watch = _Watch(path, lambda: _state(staged_parts(path)), self._retry_policy)
        while True:
            handle = open_in_use(path, expected.num_bytes)
            if handle is not None:
                return handle
            if ahead is not None and not ahead.is_wanted():
                raise FetchStopped(f"{path.name} is not needed any more")
            with staging(path) as is_ours:
                if is_ours:
                    # Another process may have staged it since, and is out of the way only now.
                    handle = open_in_use(path, expected.num_bytes)
                    return self._stage(path, expected, ahead) if handle is None else handle
            if ahead is not None and has_room(path, expected.num_bytes):
                ahead.end_turn()
            watch.look()
            self._pause(_LOOK_SECONDS)

    def _content(self, split: str, number: int) -> Content:
        assert self._set is not None
        found = self._set[1].split(split)
        return Content(num_bytes=found.shard_bytes[number], sha256=found.shard_sha256[number])

    def _stage(self, path: Path, content: Content, ahead: _Ahead | None) -> int:
        """Fetch the shard; returns it as an open file in use."""
        assert content.num_bytes is not None
        clear(path)
        with contextlib.ExitStack() as failing:
            with atomic_writer(path) as file:
                evicted = reserve(self._directory, file, content.num_bytes, self._max_bytes)
                with self._lock:
                    self._cost.num_evicted_shards += evicted
                if ahead is not None:
                    ahead.end_turn()
                self._fetch(path.name, file, content)
                handle = open_staged(file)
                failing.callback(os.close, handle)
            failing.pop_all()
        with self._lock:
            self._cost.num_staged_shards += 1
        return handle

    def expect(
        self,
        shards: Iterable[tuple[str, int]],
        is_wanted: Callable[[str, int], bool] = lambda _split, _number: True,
    ) -> None:
        """Stage these shards in this order, some at a time, as far ahead as there is room.

        Each is in use once it is staged. One that cannot be is tried again and again, as long as it
        `is_wanted`; whoever needs it meanwhile meets the error by its own attempts.
        """
        plan, turn = enumerate(shards), threading.Lock()
        threads = [
            threading.Thread(
                target=self._stage_ahead, args=(plan, turn, is_wanted), name="stage", daemon=True
            )
            for _ in range(_STREAMS)
        ]
        self._threads = [other for other in self._threads if other.is_alive()] + threads
        for thread in threads:
            thread.start()

    def _stage_ahead(
        self,
        plan: Iterator[tuple[int, tuple[str, int]]],
        turn: threading.Lock,
        is_wanted: Callable[[str, int], bool],
    ) -> None:
        while not self._stop.is_set():
            with _Ahead(turn) as ahead, contextlib.suppress(FetchStopped):
                entry = next(plan, None)
                if entry is None:
                    return
                ahead.place, shard = entry
                ahead.is_wanted = functools.partial(is_wanted, *shard)
                while not self._is_staged_ahead(*shard, ahead):
                    pass

    def _is_staged_ahead(self, split: str, number: int, ahead: _Ahead) -> bool:
        try:
            if not self.give_way():
                self._use(split, number, ahead)
                return True
        except CacheFullError:
            pass
        except OSError as error:
            _log.warning("staging ahead: %s; trying again", describe(error))
            self._pause(_AGAIN_SECONDS)
        self._room.clear()
        self._room.wait(_ROOM_SECONDS)  # others' releases are found by looking
        self._pause(0)
        return False

    def give_way(self) -> bool:
        """If anybody on this host needs room at once, release a shard that was staged ahead.

        Of those that of which the need is farthest. Returns whether somebody does; who waits while
        shards are staged ahead calls it again and again.
        """
        is_wanted = is_room_wanted(self._directory)
        if is_wanted:
            self._give_way()
        return is_wanted

    def _give_way(self) -> None:
        with self._lock:
            if self._ahead:
                farthest = max(self._ahead, key=self._ahead.__getitem__)
                del self._ahead[farthest]
                handle = self._in_use.pop(farthest)
                mark_used(handle, 0)  # the first to go: all others are wanted sooner
                os.close(handle)

    def release(self, split: str, number: int) -> None:
        """The shard is not in use any more: its file may go when room is needed."""
        shard = split, number
        with self._lock:
            self._ahead.pop(shard, None)
            if shard in self._in_use:
                os.close(self._in_use.pop(shard))
        self._room.set()

    def in_use(self, split: str) -> list[int]:
        """The numbers of the split's shards that are in use by this process."""
        with self._lock:
            return [number for name, number in self._in_use if name == split]

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise FetchStopped("the cache is closed")

    def give_up(self) -> None:
        """Stop staging: whoever waits for a shard gets `FetchStopped`. What is in use stays so."""
        self._stop.set()
        self._room.set()

    def close(self) -> None:
        """Stop staging and release everything; no descriptor may be in use any more."""
        self.give_up()
        for thread in self._threads:
            thread.join()
        with self._lock:
            for handle in self._in_use.values():
                os.close(handle)
            self._in_use.clear()
            self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Ahead:
    """A shard that is staged ahead, and the turn to take room, which goes by the plan's order."""

    def __init__(self, turn: threading.Lock) -> None:
        self.place = 0
        self.is_wanted: Callable[[], bool] = lambda: True
        self._turn = turn
        self._has_turn = False

    def end_turn(self) -> None:
        """There is room for this one: the next may look for its own."""
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    def __enter__(self) -> Self:
        self._has_turn = self._turn.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_turn()


class _Watch:
    """Watches over another process that stages something; a stuck one is not waited for."""

    def __init__(
        self, path: Path, state: Callable[[], frozenset[tuple[str, int]]], retry_policy: RetryPolicy
    ) -> None:
        self._path = path
        self._state = state
        self._silence_seconds = retry_policy.silence_seconds
        self._last = state()
        self._deadline = time.monotonic() + self._silence_seconds

    def look(self) -> None:
        """Raise `FetchError` if nothing has changed for longer than retries can take."""
        state = self._state()
        if state != self._last:
            self._last = state
            self._deadline = time.monotonic() + self._silence_seconds
        elif time.monotonic() > self._deadline:
            raise FetchError(
                f"another process stages {self._path} and has made no progress for "
                f"{self._silence_seconds:g} s; end it ('lslocks' tells which it is), "
                "or give another data.cache_dir"
            )


def _state(paths: Iterable[Path]) -> frozenset[tuple[str, int]]:
    """Names of files and when they were last written to."""
    found = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return frozenset(found)


def _small_files(manifest: Manifest) -> dict[str, str]:
    """Name and hash of every file but shards that the manifest names."""
    statistics = manifest.statistics
    files = {statistics.mean_image_filename: statistics.mean_image_sha256}
    for split in manifest.splits.values():
        files[split.index_filename] = split.index_sha256
        files[split.checksums_filename] = split.checksums_sha256
    return {name: sha256 for name, sha256 in files.items() if name and sha256}


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether all but the shards is there, as it should be."""
    try:
        return (folder / MANIFEST_NAME).exists() and all(
            sha256_of(folder / name) == sha256 for name, sha256 in _small_files(manifest).items()
        )
    except FileNotFoundError:
        return False
