"""Readers of shards that are staged from a URL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config.schema import Config
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.order.partition import Indices
from pipeline.data.order.shard_needs import evaluation_needs
from pipeline.data.readers.open import open_evaluation_reader
from pipeline.data.readers.reading import ReadCost, Reader


def remote_files(shards: ShardSet, split: str) -> RemoteShards | None:
    """The shards of a split that are at a URL; None if they are on this host."""
    if shards.cache is None:
        return None
    return RemoteShards(shards.cache, shards.folder, shards.manifest.split(split))


def staged_reader(config: Config, shards: ShardSet, split: str) -> Reader:
    """The reader of a split for evaluation, wherever the shards are."""
    files = remote_files(shards, split)
    reader = open_evaluation_reader(config, shards, split, files)
    return reader if files is None else StagedReader(reader, files, range(reader.num_samples))


class StagedReader:
    """A reader that is asked for rising numbers of `samples`, over and over.

    What comes next is staged meanwhile, and what is over is given up.
    """

    def __init__(self, reader: Reader, files: RemoteShards, samples: range) -> None:
        self._reader = reader
        self._files = files
        self._samples = samples
        self._next = np.iinfo(np.int64).max
        self.num_samples = reader.num_samples
        self.image_shape = reader.image_shape

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost]:
        first = int(samples[0])
        if first < self._next:
            self._files.expect(evaluation_needs(self._files.shard_lengths, self._samples))
        self._files.passed(first)
        self._next = first + 1
        return self._reader.read(samples, epoch, images)

    def give_up(self) -> None:
        self._reader.give_up()

    def close(self) -> None:
        self._reader.close()
