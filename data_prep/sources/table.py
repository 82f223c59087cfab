"""The source `table`: image files that a CSV, TSV or Parquet table lists, with their labels."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.shard_set.fields import name_some
from data_prep.shard_set.foreign_tar import parse_label
from data_prep.shard_set.keys import make_keys
from data_prep.sources.labels import RawLabel, find_column, number_labels
from data_prep.sources.parquet import read_columns
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import FileReader, Source, SourceError
from data_prep.sources.splits import SPLIT_OF

_PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABEL_NAMES = ("label", "class", "class_name", "category", "target", "labels")
_SPLIT_NAMES = ("split", "set", "subset", "partition")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """The columns to read; None looks for one of the usual names."""

    path: str | None = None
    label: str | None = None
    split: str | None = None


def open_table(
    table: Path,
    root: Path,
    columns: TableColumns,
    *,
    class_names: tuple[str, ...] | None = None,
    first_label: int = 0,
    outside: bool = False,
) -> Source:
    """The images that `table` lists, with paths relative to `root`.

    Without a column of splits all images are train; rows of `test` are val if no row is of val, and
    else left out. A label is a whole number, or the name of a class.
    Raises `SourceError` if the table is damaged or lacks a column, a path is listed twice or leads
    out of `root` (unless `outside`), or a file is missing.
    """
    header, rows = _read(table)
    where = str(table)
    path_column = header.index(find_column(header, where, "path", columns.path, _PATH_NAMES))
    label_column = header.index(find_column(header, where, "label", columns.label, _LABEL_NAMES))
    split_column = None
    if columns.split is not None or {name.lower() for name in header} & set(_SPLIT_NAMES):
        split_column = header.index(
            find_column(header, where, "split", columns.split, _SPLIT_NAMES)
        )
    paths: dict[str, list[str]] = {}
    raw: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        where = f"{table}, row {number}"
        path, label = row[path_column], row[label_column].strip()
        if not path or "\0" in path or not label:
            raise SourceError(f"{where}: the path or the label is empty, or no text; expected both")
        split = "train" if split_column is None else _split_of(where, row[split_column])
        paths.setdefault(split, []).append(os.path.normpath(path))
        raw.setdefault(split, []).append(label)
    if "test" in paths:
        test = paths.pop("test"), raw.pop("test")
        if "val" not in paths:
            paths["val"], raw["val"] = test
    if not paths:
        raise SourceError(f"{table} has no rows; expected a path and a label in each")
    _check_paths(table, root, [path for of_split in paths.values() for path in of_split], outside)
    names, labels = number_labels(
        _as_numbers(raw), class_names, f"column '{header[label_column]}' of {table}", first_label
    )
    return Source(
        name="table",
        class_names=names,
        splits={
            split: SampleTable(map(Sample, make_keys(listed), labels[split].tolist(), listed))
            for split, listed in paths.items()
        },
        reader=FileReader(root),
        default_encoding="jpeg",
    )


def _read(table: Path) -> tuple[list[str], Iterable[Sequence[str]]]:
    """The names of the columns, and the rows, each with a text in each column."""
    if table.suffix == ".parquet":
        header, columns = read_columns(table)
        return header, zip(*columns, strict=True)
    try:
        content = table.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # by Excel
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"--input {table} cannot be read ({error}); expected a CSV or TSV file in UTF-8 or "
            "UTF-16, or a Parquet file"
        ) from None
    lines = io.StringIO(text, newline="")  # a quoted text may hold line breaks
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # Excel writes any of them
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise SourceError(f"{table} is damaged: {error}; is a double quote open?") from None
    header = [name.strip() for name in rows[0]] if rows else []
    for number, row in enumerate(rows, 1):
        if row and len(row) != len(header):
            raise SourceError(
                f"{table}, row {number} has {len(row)} columns; expected {len(header)}, as the "
                "first row has: put text with commas into double quotes"
            )
    return header, rows[1:]


def _split_of(where: str, text: str) -> str:
    try:
        return SPLIT_OF[text.strip().lower()]
    except KeyError:
        raise SourceError(
            f"{where}: the split is {text!r}; expected one of {', '.join(SPLIT_OF)}"
        ) from None


def _as_numbers(raw: Mapping[str, list[str]]) -> dict[str, list[RawLabel]]:
    """The labels as numbers if all of them are."""
    parsed = {split: [parse_label(label) for label in labels] for split, labels in raw.items()}
    is_text = any(isinstance(label, str) for labels in parsed.values() for label in labels)
    return {split: list(labels) for split, labels in raw.items()} if is_text else parsed


def _check_paths(table: Path, root: Path, paths: Sequence[str], outside: bool) -> None:
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise SourceError(f"{table} lists {len(twice)} paths twice ({name_some(twice)})")
    real = os.path.realpath  # unlike Path.resolve, it knows links that lead to themselves
    inside = Path(real(root))
    out = [
        path
        for path in ([] if outside else paths)
        if PurePosixPath(path).is_absolute() or not Path(real(root / path)).is_relative_to(inside)
    ]
    if out:
        raise SourceError(
            f"{len(out)} paths of {table} lead out of {root} ({name_some(out)}), by themselves "
            "or by a link; give --root a folder that holds all images, or, if you trust the "
            "table, add --allow-outside"
        )
    is_file = os.path.isfile  # unlike Path's, False for a name that is too long
    if missing := [path for path in paths if not is_file(root / path)]:
        raise SourceError(
            f"{len(missing)} of {len(paths)} files that {table} lists are not below {root} "
            f"({name_some(missing)}): give --root the folder that the paths begin in"
        )
