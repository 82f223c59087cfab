"""The source `parquet`: images in Parquet files, as on the Hugging Face Hub.

https://huggingface.co/docs/hub/datasets-image: a column of structs with the fields `bytes` and
`path`, and a column of labels, whose class names are in the schema's metadata. A Parquet file gives
whole row groups of images, and a conversion reads one image here and one there. So all images are
first unpacked, one after another, into the shard set; the copy goes when that is finished.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.shard_set.files import remove_leftovers, write_atomically
from data_prep.shard_set.keys import make_keys
from data_prep.shard_set.locks import locked
from data_prep.sources.apart import each_apart
from data_prep.sources.labels import RawLabel, number_labels
from data_prep.sources.parquet_file import Columns, copy_images, read_labels, read_table
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import RawImage, Source, SourceError, file_stamp
from data_prep.sources.splits import by_split, find_files


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads unpacked images; the locator is a Parquet file below `root` and the number of a row."""

    root: Path
    unpacked: Path

    def read(self, sample: Sample) -> RawImage:
        name, row = _parts(sample.locator)
        offsets, images = _unpacked_paths(self.unpacked, name)
        place = np.fromfile(offsets, np.uint64, 2, offset=8 * (row + 1)).tolist()
        with images.open("rb", buffering=0) as file:
            is_there = len(place) == 2 and place[0] <= place[1] <= os.fstat(file.fileno()).st_size
            if not is_there:
                reason = "it is damaged, or its .offsets are: remove both and start again"
                raise OSError(errno.EIO, reason, str(images))
            begin, end = place
            return os.pread(file.fileno(), end - begin, begin)

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
    columns: dict[str, Columns] = {}
    labels: dict[str, list[RawLabel]] = {}
    lengths: dict[str, dict[str, int]] = {}
    files = find_files(root, ".parquet")
    _need_pyarrow()
    read = functools.partial(read_labels, image=image_column, label=label_column)
    for split, names in by_split(str(path.relative_to(folder)) for path in files).items():
        labels[split], lengths[split] = [], {}
        read_apart = each_apart(read, [folder / name for name in names])
        for name, (_, (chosen, found)) in zip(names, read_apart, strict=True):
            columns[name] = chosen
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
    columns: Mapping[str, Columns],
    num_workers: int,
    show: Callable[[int, int], None],
) -> None:
    """Unpack each file that is not unpacked already."""
    unpacked.mkdir(parents=True, exist_ok=True)
    names = {folder / name: name for name in columns}

    def unpack(path: Path) -> None:
        _unpack(path, columns[names[path]], *_unpacked_paths(unpacked, names[path]))

    for number, _ in enumerate(each_apart(unpack, names, num_workers), 1):
        show(number, len(names))


def _unpack(path: Path, columns: Columns, offsets_path: Path, images_path: Path) -> None:
    """Copy a file's images, and then write its stamp and where each begins: now it is whole."""
    with locked(offsets_path.with_suffix(".lock"), wait_seconds=math.inf):  # against other tasks
        stamp = file_stamp(path)
        if offsets_path.is_file() and np.fromfile(offsets_path, np.uint64, 1).tolist() == [stamp]:
            return
        remove_leftovers(images_path.parent, {images_path.name})
        ends = np.cumsum(copy_images(path, columns, images_path), dtype=np.uint64)
        offsets = np.concatenate([[np.uint64(stamp), np.uint64(0)], ends])
        write_atomically(offsets_path, offsets.tobytes(), durable=False)


def read_columns(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns and, column by column, the values as texts.

    Nulls are empty texts. Raises `SourceError` if the file is damaged.
    """
    _need_pyarrow()
    ((_, found),) = each_apart(read_table, [path])
    return found


def _need_pyarrow() -> None:
    """Import it once for all processes that read files."""
    try:
        import pyarrow.compute
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise SourceError(
            "the source parquet needs pyarrow: pip install 'alexnet-2012[parquet]'"
        ) from None
