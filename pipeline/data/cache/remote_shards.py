"""One split of a remote shard set, as open files: staged ahead of need, given up when passed."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.shard_set.files import describe
from data_prep.shard_set.manifest import Split
from pipeline.data.cache.cache_directory import CacheFullError, expect_use
from pipeline.data.cache.remote import Content, FetchStopped
from pipeline.data.cache.shard_cache import ShardCache, cached_path
from pipeline.data.order.shard_needs import ShardNeed

_STREAMS = 4
"""Shards that are staged ahead at the same time: one connection rarely fills a line."""
_AGAIN_SECONDS = 5.0
"""Between two tries to stage ahead what could not be."""
_LOOK_SECONDS = 0.5
"""Between two looks whether another process has made room."""

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """What keeps a shard."""

    file: int
    since: int
    """It is for the first need that ends at this position or later."""


class RemoteShards:
    """Hands out the shards of one split of `cache`.

        shards.expect(training_needs(plan, lengths, seed, step, end_step))
        with shards.reading(number) as file: os.pread(file, …)      in any number of threads
        shards.passed(run_position(plan, step))                     now and then

    Positions are those of the needs. For what is raised see `ShardCache`.
    """

    are_lasting = False

    def __init__(self, cache: ShardCache, folder: Path, split: Split) -> None:
        self._cache = cache
        self._num_samples = split.num_samples
        self._paths = [cached_path(folder, name) for name in split.filenames]
        shards = zip(split.shard_bytes, split.shard_sha256, strict=True)
        self._contents = [Content(num_bytes=size, sha256=sha256) for size, sha256 in shards]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # holds what follows
        self._in_use: dict[int, _Held] = {}
        """Open files, by the number of the shard."""
        self._ahead: dict[int, _Held] = {}
        """What keeps the shards that are staged ahead, see `expect_use`."""
        self._lasts: dict[int, list[int]] = {}
        """The last positions of each shard's needs that are handed on and not over."""
        self._position = 0

    def expect(self, needs: Iterable[ShardNeed]) -> None:
        """Stage what `needs` lists, in its order, ahead of `passed`; an older list is forgotten.

        Some at a time, as far ahead as there is room. One that cannot be staged is tried again
        until it is passed; whoever reads it gets the error of its own attempts.
        """
        self.give_up()
        with self._changed:
            self._stop = stop = threading.Event()
            self._lasts.clear()
            self._position = 0
        arguments = self._handed_on(needs, stop), threading.Lock(), stop
        threads = [
            threading.Thread(target=self._stage_ahead, args=arguments, name="stage", daemon=True)
            for _ in range(_STREAMS)
        ]
        self._threads = [other for other in self._threads if other.is_alive()] + threads
        for thread in threads:
            thread.start()

    def _handed_on(self, needs: Iterable[ShardNeed], stop: threading.Event) -> Iterator[ShardNeed]:
        """The `needs` that are not over yet, at most an epoch ahead."""
        for need in needs:
            with self._changed:
                while not stop.is_set() and need.first >= self._position + self._num_samples:
                    self._changed.wait(_LOOK_SECONDS)
                if stop.is_set():
                    return
                if need.last < self._position:
                    continue
                lasts = self._lasts.get(need.shard, [])
                still = [last for last in lasts if last >= self._position]
                self._lasts[need.shard] = [*still, need.last]
            yield need

    def _stage_ahead(
        self, needs: Iterator[ShardNeed], turn: threading.Lock, stop: threading.Event
    ) -> None:
        """Stage one need after another; the next gets its `turn` when this one has room."""
        while True:
            with contextlib.ExitStack() as has_turn:
                has_turn.enter_context(turn)
                need = next(needs, None)
                if need is None:
                    return
                while self._is_wanted(need, stop):
                    if self._is_staged(need, stop, has_turn.close):
                        break

    def _is_wanted(self, need: ShardNeed, stop: threading.Event) -> bool:
        return not stop.is_set() and need.last >= self._position

    def _is_staged(
        self, need: ShardNeed, stop: threading.Event, has_room: Callable[[], None]
    ) -> bool:
        """Try to stage a shard ahead; False, after a while, if that is not possible."""
        shard = need.shard
        try:
            with contextlib.ExitStack() as released:
                kept = expect_use(self._paths[shard])
                released.callback(os.close, kept)
                os.close(self._open_shard(shard, stop, has_room))
                with self._changed:
                    is_held = shard in self._ahead or shard in self._in_use
                    if self._is_wanted(need, stop) and not is_held:
                        self._ahead[shard] = _Held(kept, need.last)
                        released.pop_all()
                return True
        except FetchStopped:
            pass
        except CacheFullError:
            with self._changed:
                self._changed.wait(_LOOK_SECONDS)
        except OSError as error:
            _log.warning("staging ahead: %s; trying again", describe(error))
            stop.wait(_AGAIN_SECONDS)
        return False

    def _open_shard(
        self, shard: int, stop: threading.Event, has_room: Callable[[], None] | None = None
    ) -> int:
        path, content = self._paths[shard], self._contents[shard]
        return self._cache.open_file(path, content, stop, has_room)

    @contextlib.contextmanager
    def reading(self, shard: int) -> Iterator[int]:
        """The shard as a file that is open while the block runs, staged now if it is not there."""
        with self._changed:
            file = os.dup(self._in_use[shard].file) if shard in self._in_use else None
        if file is None:
            file = self._open_shard(shard, self._stop)
            with self._changed:
                if shard not in self._in_use:
                    self._in_use[shard] = _Held(os.dup(file), self._position)
                if shard in self._ahead:
                    os.close(self._ahead.pop(shard).file)
        try:
            yield file
        finally:
            os.close(file)

    def passed(self, position: int) -> None:
        """Nothing before `position` is asked for again: release what only that needed.

        A shard that a later need will use is evicted until then, where others need the room. One
        that is released too soon is opened, and if need be staged, again.
        """
        with self._changed:
            self._position = position
            for held in (self._in_use, self._ahead):
                for shard in [one for one in held if self._is_over(one, held[one])]:
                    os.close(held.pop(shard).file)
                    if self._lasts.get(shard, [-1])[-1] >= position:
                        again = _Held(expect_use(self._paths[shard]), position)
                        self._ahead[shard] = again
            self._changed.notify_all()

    def _is_over(self, shard: int, held: _Held) -> bool:
        lasts = self._lasts.get(shard, [])
        return next((last for last in lasts if last >= held.since), -1) < self._position

    def give_up(self) -> None:
        """Let whoever waits for a shard fail now; no more are staged."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop staging, and release all shards but those that are being read at the moment."""
        self.give_up()
        for thread in self._threads:
            thread.join()
        self._lasts.clear()
        self.passed(0)
