"""Writes a shard, and the record of all that the manifest needs from it."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from data_prep.convert.assignment import ShardName
from data_prep.convert.images import StoredImage, store
from data_prep.convert.output import ConversionError, record_path
from data_prep.convert.records import DAMAGES, load_record, save_record
from data_prep.convert.statistics import PixelSums
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.conversion_metrics import Stage, StageClock
from data_prep.shard_set.files import atomic_writer
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.shard_set.manifest import LABEL_SUFFIX, Encoding
from data_prep.shard_set.rejection import RejectedImage, RejectReason
from data_prep.shard_set.tar_walk import BLOCK_BYTES
from data_prep.shard_set.typed import check_types
from data_prep.sources.samples import Sample
from data_prep.sources.source import Reader

_FILE_MODE = 0o644
_MAX_SIZES = 2  # enough to know that they differ
_END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)


_ARRAYS = {
    "index": (INDEX_DTYPE, 1),
    "checksums": (np.uint32, 1),
    "stamps": (np.uint64, 1),
    "sums": (np.int64, 1),
    "products": (np.int64, 2),
    "image_sum": (np.uint32, 3),
}
"""Type and number of dimensions of what a record holds."""


@dataclass(slots=True)
class ShardContents:
    """What is in one shard, or in several: they add up."""

    sizes: set[tuple[int, int]] = field(default_factory=set)
    """Height and width of the images; of many sizes, some."""
    rewritten: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    """Of each rejected sample: locator, reason, and a sentence with what to do."""
    pixels: PixelSums = field(default_factory=PixelSums)
    """Of the train split only: nothing may be learnt from validation images."""

    def add(self, image: StoredImage, *, is_train: bool) -> None:
        """Add an image."""
        height, width, _ = image.pixels.shape
        if len(self.sizes) < _MAX_SIZES:
            self.sizes.add((height, width))
        if image.rewritten is not None:
            self.rewritten[image.rewritten] += 1
        if is_train:
            self.pixels.add(image.pixels)

    def merge(self, other: ShardContents) -> None:
        """Add all of `other`."""
        if len(self.sizes) < _MAX_SIZES:
            self.sizes |= other.sizes
        self.rewritten += other.rewritten
        self.rejected += other.rejected
        self.pixels.merge(other.pixels)


@dataclass(kw_only=True, slots=True)
class ShardRecord:
    """A finished shard. Rejected samples have no row."""

    num_bytes: int
    sha256: str
    index: npt.NDArray[np.void]
    """`INDEX_DTYPE[rows]`."""
    checksums: npt.NDArray[np.uint32]
    """CRC-32 of each row's image member."""
    stamps: npt.NDArray[np.uint64]
    """Of all samples, rejected ones too: they change when an image is replaced."""
    contents: ShardContents

    def save(self, shards: Path, name: ShardName) -> None:
        """Write all to one .npz file, atomically."""
        contents = self.contents
        pixels = contents.pixels
        facts = {
            "num_bytes": self.num_bytes,
            "sha256": self.sha256,
            "sizes": sorted(contents.sizes),
            "rewritten": contents.rewritten,
            "rejected": contents.rejected,
            "pixels": [pixels.num_images, pixels.num_pixels],
        }
        arrays = {
            "index": self.index,
            "checksums": self.checksums,
            "stamps": self.stamps,
            "sums": pixels.sums,
            "products": pixels.products,
        }
        if pixels.image_sum is not None:  # no shard has the 16 million images that need more
            arrays["image_sum"] = pixels.image_sum.astype(np.uint32)
        save_record(record_path(shards, name), facts, arrays)

    @classmethod
    def load(cls, shards: Path, name: ShardName) -> Self:
        """Read what `save` wrote; raises one of `DAMAGES` if the shard is not finished."""
        facts, arrays = load_record(record_path(shards, name))
        num_images, num_pixels = facts["pixels"]
        pixels = PixelSums(num_images, num_pixels, arrays["sums"], arrays["products"])
        if num_images:
            pixels.image_sum = arrays["image_sum"]
        index, checksums = arrays["index"], arrays["checksums"]
        shapes = checksums.shape, pixels.sums.shape, pixels.products.shape
        are_right = all((each.dtype, each.ndim) == _ARRAYS[key] for key, each in arrays.items())
        if not are_right or shapes != (index.shape, (3,), (3, 3)):
            raise ValueError(f"the arrays of {name.stem} are not as written")
        record = cls(
            num_bytes=facts["num_bytes"],
            sha256=facts["sha256"],
            index=index,
            checksums=checksums,
            stamps=arrays["stamps"],
            contents=ShardContents(
                set(map(tuple, facts["sizes"])),
                Counter(facts["rewritten"]),
                list(map(tuple, facts["rejected"])),
                pixels,
            ),
        )
        check_types(record, cls, "")
        return record


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What all shards of a conversion have in common."""

    reader: Reader
    shards: Path
    encoding: Encoding
    size: int | None
    jpeg_quality: int | None
    restart: int


def write_shard(
    name: ShardName,
    samples: Sequence[Sample],
    job: ShardJob,
    count_sample: Callable[[RejectReason | None], object],
) -> Mapping[Stage, float]:
    """Write a shard, then its record, which says that the shard is finished; both atomically.

    `count_sample` is told of each sample why it was rejected, or None. Returns the seconds of each
    stage. The shard is hashed while it is written, and read back before it gets its name.
    Raises `OSError`, and `ConversionError` if an image does not suit the encoding.
    """
    path, suffix = job.shards / name.filename, codec_of(job.encoding).suffix
    contents, clock = ShardContents(), StageClock()
    rows, checksums, stamps = [], [], []
    digest = hashlib.sha256()
    with atomic_writer(path) as file:
        for sample in samples:
            reason: RejectReason | None = None
            clock.enter("read")
            stamps.append(job.reader.stamp(sample))  # first, to notice what is replaced meanwhile
            try:
                raw = job.reader.read(sample)
                clock.enter("convert")
                image = store(raw, job.encoding, job.size, job.jpeg_quality, job.restart)
            except ConversionError as error:
                raise ConversionError(f"{sample.locator}: {error}") from None
            except RejectedImage as rejection:
                reason = rejection.reason
                contents.rejected.append((sample.locator, rejection.reason, str(rejection)))
            else:
                clock.enter("write")
                content = image.content
                rows.append((name.number, file.tell() + BLOCK_BYTES, len(content), sample.label))
                checksums.append(zlib.crc32(content))
                members = _member(f"{sample.key}.{suffix}", content)
                members += _member(f"{sample.key}.{LABEL_SUFFIX}", str(sample.label).encode())
                file.write(members)
                digest.update(members)
                contents.add(image, is_train=name.split == "train")
                check_sizes(contents.sizes, job.encoding)
            count_sample(reason)
        clock.enter("write")
        file.write(_END_OF_ARCHIVE)
        digest.update(_END_OF_ARCHIVE)
        num_bytes = file.tell()
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != digest.hexdigest():
            raise OSError(f"{path} does not read back as it was written: the disk is damaged")
    record = ShardRecord(
        num_bytes=num_bytes,
        sha256=digest.hexdigest(),
        index=np.array(rows, INDEX_DTYPE),
        checksums=np.array(checksums, np.uint32),
        stamps=np.array(stamps, np.uint64),
        contents=contents,
    )
    record.save(job.shards, name)
    clock.enter(None)
    return clock.seconds


def _member(name: str, content: bytes) -> bytes:
    """A member of a ustar archive, whose bytes depend on nothing but the arguments."""
    header = tarfile.TarInfo(name)  # owner and time are 0 unless set
    header.size = len(content)
    header.mode = _FILE_MODE
    padding = bytes(-len(content) % BLOCK_BYTES)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + padding


def find_record(shards: Path, name: ShardName) -> ShardRecord | None:
    """The record of a finished shard; None if either is missing or damaged."""
    try:
        record = ShardRecord.load(shards, name)
        is_whole = (shards / name.filename).stat().st_size == record.num_bytes
    except DAMAGES:
        return None
    return record if is_whole else None


def check_sizes(sizes: set[tuple[int, int]], encoding: Encoding) -> None:
    """Raise `ConversionError` if images of these sizes cannot be stored with that encoding."""
    if codec_of(encoding).has_fixed_size and len(sizes) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[:2]
        raise ConversionError(
            f"the images differ in size ({height}×{width}, {other_height}×{other_width}); "
            f"--encoding {encoding} needs one: give --size 256 (for recipes of CIFAR-10: 32), or "
            "--encoding jpeg"
        )
