"""Sample index: in which file each image of a split is, and from which byte on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import Encoding
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.order.partition import Indices

Rows = npt.NDArray[np.void]
"""`data_prep.shard_set.index.INDEX_DTYPE[n]`; `shard` counts the files of `SampleIndex`."""


class SampleIndex(Protocol):
    """The images of one split, however they are stored."""

    num_samples: int
    encoding: Encoding
    image_size: ImageSize | None
    """None if the images differ in size."""
    checksums: npt.NDArray[np.uint32]
    """CRC-32 of each sample's content, with `prefix` before it."""
    are_lasting: bool
    """Whether files are there from the first to the last, so that they can be kept in memory."""
    prefix: bytes
    """What a row leaves out of the content that the checksum is of."""

    @property
    def remedy(self) -> str:
        """What to do about damage, for the end of an error."""

    def rows(self, samples: Indices) -> Rows:
        """The index's rows of these samples."""

    def reading(self, file: int, /) -> AbstractContextManager[int]:
        """The file as a descriptor while a block runs; may wait until it is there.

        Raises `ShardSetError` if it cannot be had.
        """

    def name(self, file: int, /) -> str:
        """What the file is called, without its folder."""

    def describe(self, file: int, offset: int, /) -> str:
        """How an error names the image at `offset`."""

    def give_up(self) -> None:
        """Let whoever waits in `reading` fail now, and later ones too."""

    def close(self) -> None:
        """Close all files."""
