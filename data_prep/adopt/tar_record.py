"""What is in one tar that another program wrote: found in one reading, and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.convert.records import DAMAGES, load_record, save_record
from data_prep.shard_set.checksum import crc32
from data_prep.shard_set.codec import plain_jpeg_size
from data_prep.shard_set.decoding import size_in_header
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError, walk_samples
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.shard_set.typed import check_types
from data_prep.sources.labels import RawLabel
from data_prep.sources.source import file_stamp

_ARRAYS = ("index", "checksums", "sizes")
_MAX_IMAGE_BYTES = (1 << 32) - 1
_HEADER_BYTES = 1 << 14
"""Most JPEGs have their whole header in so many."""
_PIECE_BYTES = 1 << 19


@dataclass(frozen=True, kw_only=True, slots=True)
class TarRecord:
    """The samples of a tar, in their order."""

    stamp: int
    """By which it is noticed that the tar was replaced."""
    num_bytes: int
    sha256: str
    index: npt.NDArray[np.void]
    """`INDEX_DTYPE[samples]`, with neither shards nor labels yet."""
    checksums: npt.NDArray[np.uint32]
    """CRC-32 of each image."""
    sizes: npt.NDArray[np.uint32]
    """Height and width of each image; zeros if they are not known."""
    is_plain: bool
    """Whether all images are JPEGs that every decoder reads alike."""
    labels: list[RawLabel]

    def save(self, path: Path) -> None:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = {name: fields.pop(name) for name in _ARRAYS}
        save_record(path, fields, arrays, durable=False)


class _HashedReads:
    """Reads that go forwards, for the most part, in one pass over a file, which also hashes it."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._pieces = [(memoryview(bytearray(_PIECE_BYTES)), 0, 0) for _ in range(2)]
        """The last one read, and the one before it: bytes, and where they begin and stop."""

    def read(self, num_bytes: int, offset: int) -> bytes:
        return bytes(self.view(num_bytes, offset))

    def view(self, num_bytes: int, offset: int) -> memoryview:
        """The same; it may change with the next call."""
        stop = offset + num_bytes
        while stop > self._pieces[0][2] and self._advance():
            pass
        for piece, begin, end in self._pieces:
            if begin <= offset and stop <= end:
                return piece[offset - begin : stop - begin]
        return memoryview(os.pread(self._file.fileno(), num_bytes, offset))

    def _advance(self) -> int:
        """Read the next piece; returns its length."""
        (_, _, start), (piece, _, _) = self._pieces
        num_bytes = self._file.readinto(piece)
        self._digest.update(piece[:num_bytes])
        if num_bytes:
            self._pieces = [(piece, start, start + num_bytes), self._pieces[0]]
        return num_bytes

    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        while self._advance():
            pass
        return self._digest.hexdigest()


def record_name(path: Path, fields: FieldNames) -> str:
    """Of the file of a tar's record: another one for other fields, and never too long."""
    return f"{hashlib.sha256(os.fsencode(f'{path} {fields}')).hexdigest()}.npz"


def find_record(path: Path, record_path: Path) -> TarRecord | None:
    """The record of a tar, if there is a whole one, and the tar was not replaced since."""
    try:
        facts, arrays = load_record(record_path)
        record = TarRecord(**{**facts, **arrays})
        check_types(record, TarRecord, "")
    except DAMAGES:
        return None
    count, arrays_found = len(record.labels), (record.index, record.checksums, record.sizes)
    shapes, kinds = [each.shape for each in arrays_found], [each.dtype for each in arrays_found]
    is_whole = shapes == [(count,), (count,), (count, 2)]
    is_whole &= kinds == [INDEX_DTYPE, np.uint32, np.uint32]
    return record if is_whole and record.stamp == file_stamp(path) else None


def read_tar(path: Path, fields: FieldNames) -> TarRecord:
    """Read a tar. Raises `ForeignTarError` naming the sample that is in the way."""
    stamp, num_bytes = file_stamp(path), path.stat().st_size
    rows, checksums, sizes, labels, is_plain = [], [], [], [], True
    with path.open("rb", buffering=0) as file:
        reads = _HashedReads(file)
        for sample in walk_samples(path, fields, reads.read):
            image = sample.image
            content = reads.view(image.num_bytes, image.offset)
            if not 0 < len(content) == image.num_bytes <= _MAX_IMAGE_BYTES:
                raise ForeignTarError(
                    f"{path}: the image of sample {sample.key} has {image.num_bytes} bytes"
                )
            rows.append((0, image.offset, image.num_bytes, 0))
            checksums.append(crc32(content))
            size = plain_jpeg_size(bytes(content[:_HEADER_BYTES]))
            size = size or plain_jpeg_size(bytes(content))  # with long metadata, or of another kind
            is_plain &= size is not None
            sizes.append(size or size_in_header(bytes(content)))
            labels.append(sample.label)
        sha256 = reads.sha256()
    return TarRecord(
        stamp=stamp,
        num_bytes=num_bytes,
        sha256=sha256,
        index=np.array(rows, INDEX_DTYPE),
        checksums=np.array(checksums, np.uint32),
        sizes=np.array(sizes, np.uint32),
        is_plain=is_plain,
        labels=labels,
    )
