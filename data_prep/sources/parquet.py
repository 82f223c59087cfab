"""The source `parquet`: images in Parquet files, as on the Hugging Face Hub.

https://huggingface.co/docs/hub/datasets-image: a column of structs with the fields `bytes` and
`path`, and a column of labels, whose class names are in the schema's metadata. A Parquet file gives
whole row groups of images, and a conversion reads one image here and one there. So all images are
first unpacked, one after another, into the shard set; the copy goes when that is finished.
Longer than 250 lines: what a file must be, and how it is unpacked, is read together.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.files import atomic_writer, remove_leftovers, write_atomically
from data_prep.shard_set.keys import make_keys
from data_prep.shard_set.locks import locked
from data_prep.sources.labels import RawLabel, find_column, number_labels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import RawImage, Source, SourceError, file_stamp
from data_prep.sources.splits import by_split, find_files

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture")
_LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")
_ROWS_AT_ONCE = 64
"""Of images in memory: a row group may hold gigabytes."""
_BUFFER_BYTES = 1 << 20
_MOST_UNPACKED_BYTES, _MOST_RATIO = 1 << 28, 20
"""More than both is no column of images, but a file made to fill memory."""


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads unpacked images; the locator is a Parquet file below `root` and the number of a row."""

    root: Path
    unpacked: Path

    def read(self, sample: Sample) -> RawImage:
        name, row = _parts(sample.locator)
        offsets, images = _unpacked_paths(self.unpacked, name)
        begin, end = np.fromfile(offsets, np.uint64, 2, offset=8 * (row + 1)).tolist()
        with images.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), end - begin, begin)
        if len(content) != end - begin:
            raise OSError(errno.EIO, "it was cut: remove it and start again", str(images))
        return content

    def stamp(self, sample: Sample) -> int:
        """Of the Parquet file."""
        return file_stamp(self.root / _parts(sample.locator)[0])


def _parts(locator: str) -> tuple[str, int]:
    name, _, row = locator.rpartition(" row ")
    return name, int(row)


def _unpacked_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Of the offsets and of the images of a Parquet file."""
    stem = name.replace("/", "%")
    return folder / f"{stem}.offsets", folder / f"{stem}.images"


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a Parquet file that count."""

    image: str
    label: str
    class_names: tuple[str, ...] | None
    is_struct: bool
    """Whether images are structs of bytes and path; else they are bytes."""


def open_parquet(
    root: Path,
    unpacked: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: tuple[str, ...] | None = None,
    first_label: int = 0,
) -> Source:
    """The images of the Parquet files below `root`, which may be one file.

    A file belongs to the split that its name, or its folder's, begins with: train, val,
    validation or valid, or, where none of these is there, test. `unpacked` is where images are
    unpacked when the conversion begins.
    Raises `SourceError` if a file is damaged, lacks a column, has images or labels that are null,
    or if labels are not those of the classes.
    """
    folder = root if root.is_dir() else root.parent
    columns: dict[str, _Columns] = {}
    labels: dict[str, list[RawLabel]] = {}
    lengths: dict[str, dict[str, int]] = {}
    files = find_files(root, ".parquet")
    for split, names in by_split(str(path.relative_to(folder)) for path in files).items():
        labels[split], lengths[split] = [], {}
        for name in names:
            path = folder / name
            with _opened(path) as file:
                columns[name] = _choose(file.schema_arrow, path, image_column, label_column)
                found = _read_labels(file, path, columns[name].label)
            labels[split] += found
            lengths[split][name] = len(found)
    (first, chosen), *others = columns.items()
    for name, other in others:
        if other != chosen:
            raise SourceError(
                f"{folder / name} has other columns or classes than {folder / first}; expected "
                "files of one data set"
            )
    where = f"column '{chosen.label}' of {root}"
    known, numbers = number_labels(labels, class_names or chosen.class_names, where, first_label)
    return Source(
        name="parquet",
        class_names=known,
        splits={split: _table(lengths[split], numbers[split].tolist()) for split in lengths},
        reader=ParquetReader(folder, unpacked),
        default_encoding="jpeg",
        selection={} if image_column is None else {"image_column": image_column},
        prepare=functools.partial(_unpack_all, folder, unpacked, columns),
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what fails in the block is damage to it, and a `SourceError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SourceError(
            "the source parquet needs pyarrow: pip install 'alexnet-2012[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            _check_unpacked(file, path)
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} cannot be read as Parquet ({reason}): copy it again") from None


def _check_unpacked(file: Any, path: Path) -> None:
    """Refuse a row group that unpacks to gigabytes, which images, being compressed, never do."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        columns = [group.column(column) for column in range(group.num_columns)]
        for column in columns:
            packed, num_bytes = column.total_compressed_size, column.total_uncompressed_size
            if num_bytes > max(_MOST_UNPACKED_BYTES, _MOST_RATIO * packed):
                raise SourceError(
                    f"row group {number} of {path} unpacks from {packed:,} to {num_bytes:,} bytes "
                    f"in column '{column.path_in_schema}'; expected images, which do not: check "
                    "where the file is from"
                )


def _choose(schema: Any, path: Path, image: str | None, label: str | None) -> _Columns:
    """The columns of images and labels: those asked for, or else those of the usual names."""
    import pyarrow

    features = _features(schema)
    names_of = {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }
    image = find_column(schema.names, str(path), "image", image, _IMAGE_NAMES)
    label = find_column(schema.names, str(path), "label", label, (*_LABEL_NAMES, *names_of))
    types = pyarrow.types
    kind = schema.field(image).type
    is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (is_struct or types.is_binary(kind) or types.is_large_binary(kind)):
        raise SourceError(
            f"column '{image}' of {path} holds {kind}; expected the bytes of image files, alone or "
            "in structs with a field 'bytes': name another one with --image-column"
        )
    kind = schema.field(label).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise SourceError(
            f"column '{label}' of {path} holds {kind}; expected whole numbers or class names: name "
            "another one with --label-column"
        )
    return _Columns(image, label, names_of.get(label), is_struct)


def _features(schema: Any) -> dict[str, Any]:
    """What the Hub's libraries write into the metadata about each column."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _read_labels(file: Any, path: Path, column: str) -> list[RawLabel]:
    found = file.read(columns=[column]).column(0)
    if found.null_count:
        raise SourceError(
            f"column '{column}' of {path} has {found.null_count} nulls among {len(found)} labels; "
            "expected a label for each image: remove those rows"
        )
    labels: list[RawLabel] = found.to_pylist()
    return labels


def _table(lengths: Mapping[str, int], labels: Sequence[int]) -> SampleTable:
    """The samples of a split, of which file by file has that many."""
    places = (
        (f"{key}_{row:07d}", f"{name} row {row}")
        for key, (name, length) in zip(make_keys(list(lengths)), lengths.items(), strict=True)
        for row in range(length)
    )
    return SampleTable(
        Sample(key, label, locator) for (key, locator), label in zip(places, labels, strict=True)
    )


def _unpack_all(
    folder: Path,
    unpacked: Path,
    columns: Mapping[str, _Columns],
    num_workers: int,
    show: Callable[[int, int], None],
) -> None:
    """Unpack each file that is not unpacked already."""
    unpacked.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(num_workers) as threads:
        jobs = [threads.submit(_unpack, folder, unpacked, name, columns[name]) for name in columns]
        try:
            for number, job in enumerate(as_completed(jobs), 1):
                job.result()
                show(number, len(jobs))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _unpack(folder: Path, unpacked: Path, name: str, columns: _Columns) -> None:
    """Copy a file's images, and then write its stamp and where each begins: now it is whole."""
    path = folder / name
    offsets_path, images_path = _unpacked_paths(unpacked, name)
    with locked(offsets_path.with_suffix(".lock"), wait_seconds=math.inf):  # against other tasks
        stamp = file_stamp(path)
        if offsets_path.is_file() and np.fromfile(offsets_path, np.uint64, 1).tolist() == [stamp]:
            return
        remove_leftovers(unpacked, {images_path.name})
        _copy(path, columns, stamp, offsets_path, images_path)


def _copy(path: Path, columns: _Columns, stamp: int, offsets_path: Path, images_path: Path) -> None:
    lengths: list[int] = []
    with atomic_writer(images_path, durable=False) as images:
        for contents in _batches(path, columns):
            if contents.null_count:
                raise SourceError(
                    f"column '{columns.image}' of {path} has a null among the images of rows "
                    f"{len(lengths)} to {len(lengths) + len(contents) - 1}; expected the bytes of "
                    "an image in each: remove those rows (paths alone are not followed)"
                )
            lengths += [images.write(content.as_buffer()) for content in contents]
    ends = np.cumsum(lengths, dtype=np.uint64)
    offsets = np.concatenate([[np.uint64(stamp), np.uint64(0)], ends])
    write_atomically(offsets_path, offsets.tobytes(), durable=False)


def _batches(path: Path, columns: _Columns) -> Iterator[Any]:
    """The contents of all images, some rows at a time, as arrays of bytes."""
    with _opened(path) as file:
        import pyarrow.compute

        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[columns.image]):
            column = batch.column(0)
            yield pyarrow.compute.struct_field(column, "bytes") if columns.is_struct else column


def read_columns(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns and, column by column, the values as texts.

    Nulls are empty texts. Raises `SourceError` if the file is damaged.
    """
    with _opened(path) as file:
        table = file.read()
    columns = [
        ["" if value is None else str(value) for value in column.to_pylist()]
        for column in table.columns
    ]
    return list(table.schema.names), columns
