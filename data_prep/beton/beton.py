"""Makes the `.beton` of a shard set: writes it aside, compares it with the shards, renames it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from data_prep.beton.samples import ShardSamples
from data_prep.beton.writer import open_writer
from data_prep.convert.output import ConversionError
from data_prep.shard_set.beton_format import (
    BetonRecord,
    BetonTables,
    map_tables,
    open_beton,
    write_record,
)
from data_prep.shard_set.files import TEMPORARY_PREFIX, sync, sync_directory
from data_prep.shard_set.locks import locked
from data_prep.shard_set.manifest import ShardSetError, manifest_sha256, read_manifest
from data_prep.shard_set.progress import Progress


@dataclass(frozen=True, slots=True)
class Beton:
    """A finished `.beton`."""

    record: BetonRecord
    num_bytes: int
    is_new: bool
    """Whether this call wrote it; otherwise it was there already."""


def write_beton(shards: Path, path: Path, stream: TextIO) -> Beton:
    """Write the `.beton` of a shard set to `path`, unless it is there.

    Progress goes to `stream`. Nothing is left at `path` unless all went well; a file that is there
    is never overwritten. Raises `ShardSetError` if the shard set is damaged, `ConversionError` if
    `path` is taken or ffcv is missing, and `OSError` if a disk fails.
    """
    manifest = read_manifest(shards)
    sha256 = manifest_sha256(shards)
    if path.exists():
        return _find_finished(shards, path, sha256)
    samples = ShardSamples(shards, manifest)
    with contextlib.closing(samples), _locked_temporary(path) as temporary:
        write = open_writer(samples)
        with contextlib.closing(Progress("writing", "samples", stream)) as progress:
            write(temporary, progress.show)
        with contextlib.closing(Progress("checking", "samples", stream)) as progress:
            tables = map_tables(temporary)
            check_tables(path, tables, samples)
            _check_images(temporary, tables, samples, progress.show)
        record = BetonRecord(
            manifest_sha256=sha256,
            encoding=manifest.encoding,
            splits=samples.num_by_split,
        )
        with temporary.open("r+b") as file:
            write_record(file, record, tables)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
    sync_directory(path.parent)
    return Beton(record, tables.num_bytes, is_new=True)


def _find_finished(shards: Path, path: Path, sha256: str) -> Beton:
    try:
        record, tables = open_beton(path, sha256)
    except ShardSetError as error:
        raise ConversionError(
            f"{path} is there already and is not the .beton of {shards}: delete it or give another "
            f"name ({error})"
        ) from None
    return Beton(record, tables.num_bytes, is_new=False)


@contextlib.contextmanager
def _locked_temporary(path: Path) -> Iterator[Path]:
    """Yields the name to write under, and keeps other writers from it.

    It has one name only, so what a killed writer leaves there goes when the command is run again.
    Raises `ConversionError` if another writer is at work; an `OSError` in the block names `path`.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    temporary.open("ab").close()  # what it raises is told as it is
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(temporary))
        except (BlockingIOError, FileNotFoundError):
            raise ConversionError(f"another process is writing {path}: wait for it") from None
        try:
            yield temporary
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = error.filename or str(path)
            raise


def check_tables(path: Path, tables: BetonTables, samples: ShardSamples) -> None:
    """Raise `ConversionError` if ffcv's writer wrote other rows than it was given."""
    rows, allocations = tables.rows, tables.allocations
    is_right = (
        len(rows) == len(samples)
        and np.array_equal(rows["label"], samples.labels)
        and np.all(rows["image"]["mode"] == samples.mode)
        and np.array_equal(allocations["sample_id"], np.arange(len(samples)))
        and np.array_equal(allocations["ptr"], rows["image"]["data_ptr"])
        and np.array_equal(allocations["size"], samples.image_bytes)
    )
    if not is_right:
        raise ConversionError(
            f"{path}: ffcv's writer wrote other samples than it was given; another version of "
            "ffcv than 1.0.2 may do so"
        )


def _check_images(
    path: Path, tables: BetonTables, samples: ShardSamples, show: Callable[[int, int], None]
) -> None:
    """Read every image back; raises `ShardSetError` naming the first one that is damaged."""
    with path.open("rb") as file:
        for number in range(len(samples)):
            _, offset, num_bytes = tables.allocations[number].tolist()
            file.seek(offset)
            samples.check(number, file.read(num_bytes))
            show(number + 1, len(samples))
