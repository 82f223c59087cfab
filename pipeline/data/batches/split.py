"""A split whose files are open: read batch by batch, or once, to be kept in memory."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data_prep.shard_set.manifest import Split
from data_prep.shard_set.progress import Progress
from pipeline.data.batches.loader import Loader, Request, block_requests
from pipeline.data.batches.resident import CHUNK_SAMPLES
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.order.partition import sample_blocks
from pipeline.data.order.shard_needs import ShardNeed, stretch_needs
from pipeline.data.readers.file_reader import FileReader
from pipeline.ranks.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSplit:
    """The reader of a split, and its shards if they are staged from a URL."""

    split: Split
    reader: FileReader
    files: RemoteShards | None
    prefetch_batches: int
    pin_memory: bool

    def staged(self, requests: Iterable[Request], needs: Iterable[ShardNeed]) -> Iterator[Request]:
        """The requests; meanwhile the shards they need are staged ahead, and released behind."""
        if self.files is not None:
            self.files.expect(needs)
        for request in requests:
            if self.files is not None:
                self.files.passed(request.position)  # all before it has been read
            yield request

    @contextlib.contextmanager
    def filling(
        self, parts: Iterable[range], needed: range, world: World
    ) -> Iterator[tuple[Loader, Callable[[int, int], None]]]:
        """The images of `parts`, which lie in `needed`, for once, and what shows the progress.

        The reader is closed in the end.
        """
        chunks = (chunk for part in parts for chunk in sample_blocks(part, CHUNK_SAMPLES))
        needs = stretch_needs(self.split.shard_lengths, needed)
        depth = self.reader.batches_at_once + 1  # one is copied to the device
        sizes = CHUNK_SAMPLES, False, depth
        of_ranks = "" if world.size == 1 else f" of rank 0 of {world.size}"
        progress = Progress(
            f"{self.split.name} into memory",
            f"images{of_ranks}",
            sys.stdout,
            item_bytes=math.prod(self.reader.image_shape),
        )
        show = progress.show if world.is_main else lambda *_: None
        with (
            contextlib.closing(self.reader),
            self.loader(block_requests(chunks), needs, *sizes) as loader,
            contextlib.closing(progress),
        ):
            yield loader, show

    def loader(
        self,
        requests: Iterable[Request],
        needs: Iterable[ShardNeed],
        batch_size: int,
        pad: bool,
        depth: int | None = None,
    ) -> contextlib.closing[Loader]:
        """`depth`: batches read ahead, if not as configured."""
        loader = Loader(
            self.reader,
            self.staged(requests, needs),
            batch_size=batch_size,
            depth=depth or self.prefetch_batches,
            pad=pad,
            pin_memory=self.pin_memory,
            give_up=None if self.files is None else self.files.give_up,
        )
        return contextlib.closing(loader)
