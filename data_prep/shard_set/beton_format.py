"""The `.beton` of a shard set: ffcv's file format, and in it a record of what the file holds.

    header · 2 field descriptors · a row a sample · padding · pages of images · allocation table

The record is JSON in the 1024 bytes of arguments of the image's descriptor, which ffcv leaves
empty and does not read. It is written last: without it the file was not finished. The samples are
those of the splits, one split behind the other, each in the order of its index.

The layout is stated here again, because importing it from ffcv takes five seconds, compiles
things, starts threads and takes all of torch's threads but one; a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import Encoding, ShardSetError
from data_prep.shard_set.typed import check_types, read_json

HEADER_DTYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DTYPE = np.dtype(
    [("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True
)
_IMAGE_DTYPE = np.dtype(  # not aligned in itself
    [("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]
)
ROW_DTYPE = np.dtype([("image", _IMAGE_DTYPE), ("label", "<i8")], align=True)
"""One row a sample; `data_ptr` is where its image begins in the file."""
ALLOCATION_DTYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
"""One row a piece of a page; in our files row i is the image of sample i."""

_FFCV_VERSION = 2
_FIELDS = ((2, b"image"), (1, b"label"))
"""Type and name: ffcv's RGBImageField and IntField."""
_RECORD_VERSION = 1
RECORD_OFFSET = HEADER_DTYPE.itemsize + FIELD_DTYPE.fields["arguments"][1]  # type: ignore[index]
_RECORD_BYTES = 1024
ROWS_OFFSET = HEADER_DTYPE.itemsize + len(_FIELDS) * FIELD_DTYPE.itemsize

_AGAIN = "write it again with 'python -m data_prep beton'"


@dataclass(frozen=True, kw_only=True, slots=True)
class BetonRecord:
    """What a `.beton` holds, and which shard set it is made from."""

    manifest_sha256: str
    encoding: Encoding
    splits: Mapping[str, int]
    """Number of samples by name, in the order of the file."""
    record_version: int = _RECORD_VERSION

    def samples_of(self, split: str) -> slice:
        """The rows of a split's samples; raises `ShardSetError` naming the splits there are."""
        if split not in self.splits:
            raise ShardSetError(
                f"the .beton has no split '{split}': it has {', '.join(self.splits)}"
            )
        names = list(self.splits)
        start = sum(self.splits[name] for name in names[: names.index(split)])
        return slice(start, start + self.splits[split])


@dataclass(frozen=True, slots=True)
class BetonTables:
    """The tables of a `.beton`, memory-mapped."""

    header: bytes
    rows: npt.NDArray[np.void]
    """`ROW_DTYPE[num_samples]`."""
    allocations: npt.NDArray[np.void]
    """`ALLOCATION_DTYPE[num_samples]`."""
    num_bytes: int
    """Length of the file."""

    def sha256(self, record: BetonRecord) -> str:
        """Hash of the header, the rows, the allocation table and the record."""
        digest = hashlib.sha256(json.dumps(asdict(record)).encode())
        digest.update(self.header)
        digest.update(self.rows.view(np.uint8).data)
        digest.update(self.allocations.view(np.uint8).data)
        return digest.hexdigest()


def map_tables(path: Path) -> BetonTables:
    """Memory-map the tables of a `.beton`, finished or not, and check that they fit the file.

    Raises `ShardSetError` if it is missing, truncated, unfinished, or not a `.beton` of images and
    labels.
    """
    try:
        with path.open("rb") as file:
            start, num_bytes = file.read(ROWS_OFFSET), file.seek(0, 2)
    except FileNotFoundError:
        raise ShardSetError(
            f"{path} is missing: make it with 'python -m data_prep beton SHARDS {path}'"
        ) from None
    if len(start) < ROWS_OFFSET or not _is_beton(start):
        raise ShardSetError(f"{path} is not a .beton of images and labels, or is damaged: {_AGAIN}")
    header = np.frombuffer(start, HEADER_DTYPE, count=1)[0]
    num_samples, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    if table == 0:
        raise ShardSetError(f"{path} was not finished, its writer was stopped: {_AGAIN}")
    expected = table + num_samples * ALLOCATION_DTYPE.itemsize
    if num_bytes != expected or num_samples * ROW_DTYPE.itemsize > table - ROWS_OFFSET:
        raise ShardSetError(
            f"{path} has {num_bytes} bytes; expected {expected} by its header: copy it again, or "
            f"{_AGAIN}"
        )
    return BetonTables(
        header=start[: HEADER_DTYPE.itemsize],
        rows=np.memmap(path, ROW_DTYPE, "r", ROWS_OFFSET, num_samples),
        allocations=np.memmap(path, ALLOCATION_DTYPE, "r", table, num_samples),
        num_bytes=num_bytes,
    )


def _is_beton(start: bytes) -> bool:
    header = np.frombuffer(start, HEADER_DTYPE, count=1)[0]
    fields = np.frombuffer(start, FIELD_DTYPE, count=len(_FIELDS), offset=HEADER_DTYPE.itemsize)
    return (
        header["version"] == _FFCV_VERSION
        and header["num_fields"] == len(_FIELDS)
        and header["num_samples"] > 0
        and [(kind, name.tobytes().rstrip(b"\0")) for kind, name, _ in fields] == [*_FIELDS]
    )


def write_record(file: BinaryIO, record: BetonRecord, tables: BetonTables) -> None:
    """Finish a `.beton`: put the record into its place, with a hash of all but the images."""
    text = json.dumps({**asdict(record), "sha256": tables.sha256(record)}).encode()
    file.seek(RECORD_OFFSET)
    file.write(text.ljust(_RECORD_BYTES, b"\0"))


def open_beton(path: Path, manifest_sha256: str) -> tuple[BetonRecord, BetonTables]:
    """The record and the tables of the `.beton` of the shard set with that manifest.

    The tables are hashed, the images are not.
    Raises `ShardSetError` if the file is missing, truncated, damaged, unfinished, or of other data.
    """
    tables = map_tables(path)
    record, sha256 = _read_record(path)
    if sha256 != tables.sha256(record):
        raise ShardSetError(f"{path} is damaged, its tables do not match their hash: {_AGAIN}")
    if record.manifest_sha256 != manifest_sha256:
        raise ShardSetError(
            f"{path} is of another shard set: of the manifest with sha256 "
            f"{record.manifest_sha256}, expected {manifest_sha256}; name the .beton of this one, "
            f"or {_AGAIN} under another name"
        )
    return record, tables


def _read_record(path: Path) -> tuple[BetonRecord, str]:
    """The record and the hash that goes with it."""
    with path.open("rb") as file:
        file.seek(RECORD_OFFSET)
        text = file.read(_RECORD_BYTES).rstrip(b"\0")
    if not text:
        raise ShardSetError(
            f"{path} does not say of which shard set it is: it was not finished, or another "
            f"program wrote it; {_AGAIN}"
        )
    try:
        fields = read_json(text)
        sha256: str = fields.pop("sha256")
        if (version := fields["record_version"]) == _RECORD_VERSION:
            record = BetonRecord(**fields)
            check_types(record, BetonRecord, "")
            return record, sha256
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardSetError(f"{path} has a damaged record ({error}): {_AGAIN}") from None
    raise ShardSetError(
        f"{path} has record version {version}; expected {_RECORD_VERSION}: {_AGAIN}"
    )
