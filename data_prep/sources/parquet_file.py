"""One Parquet file, read by pyarrow: in a process of its own, which damage to the file may end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shard_set.files import atomic_writer
from data_prep.shard_set.typed import read_json
from data_prep.sources.labels import RawLabel, find_column
from data_prep.sources.source import SourceError

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture")
_LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")
_ROWS_AT_ONCE = 64
"""Of images in memory: a row group may hold gigabytes."""
_BUFFER_BYTES = 1 << 20
_MOST_UNPACKED_BYTES, _MOST_RATIO = 1 << 28, 20
"""More than both is no column of images, but a file made to fill memory."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a Parquet file that count."""

    image: str
    label: str
    class_names: tuple[str, ...] | None
    is_struct: bool
    """Whether images are structs of bytes and path; else they are bytes."""


def read_labels(path: Path, image: str | None, label: str | None) -> tuple[Columns, list[RawLabel]]:
    """The columns of those names, or of the usual ones, and the label of each row.

    Raises `SourceError`.
    """
    with _opened(path) as file:
        columns = _choose(file.schema_arrow, path, image, label)
        return columns, _labels(file, path, columns.label)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what fails in the block is damage to it, and a `SourceError`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            _check_unpacked(file, path)
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} cannot be read as Parquet ({reason}): copy it again") from None


def _check_unpacked(file: Any, path: Path) -> None:
    """Refuse a row group that unpacks to gigabytes, which images, being compressed, never do."""
    file_bytes = path.stat().st_size
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if group.num_rows > file_bytes:
            raise SourceError(
                f"row group {number} of {path} has {group.num_rows:,} rows in {file_bytes:,} "
                "bytes; expected an image, or the path of one, in each: check where the file is "
                "from"
            )
        columns = [group.column(column) for column in range(group.num_columns)]
        for column in columns:
            packed, num_bytes = column.total_compressed_size, column.total_uncompressed_size
            if num_bytes > max(_MOST_UNPACKED_BYTES, _MOST_RATIO * packed):
                raise SourceError(
                    f"row group {number} of {path} unpacks from {packed:,} to {num_bytes:,} bytes "
                    f"in column '{column.path_in_schema}'; expected images, which do not: check "
                    "where the file is from"
                )


def _choose(schema: Any, path: Path, image: str | None, label: str | None) -> Columns:
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
    return Columns(image, label, names_of.get(label), is_struct)


def _features(schema: Any) -> dict[str, Any]:
    """What the Hub's libraries write into the metadata about each column."""
    try:
        content = read_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _labels(file: Any, path: Path, column: str) -> list[RawLabel]:
    found = file.read(columns=[column]).column(0)
    if found.null_count:
        raise SourceError(
            f"column '{column}' of {path} has {found.null_count} nulls among {len(found)} labels; "
            "expected a label for each image: remove those rows"
        )
    labels: list[RawLabel] = found.to_pylist()
    return labels


def copy_images(path: Path, columns: Columns, target: Path) -> list[int]:
    """Write the contents of all images, one behind the other; returns their lengths.

    Raises `SourceError`, and `OSError` if they cannot be written.
    """
    lengths: list[int] = []
    with atomic_writer(target, durable=False) as images:
        for contents in _batches(path, columns):
            if contents.null_count:
                raise SourceError(
                    f"column '{columns.image}' of {path} has a null among the images of rows "
                    f"{len(lengths)} to {len(lengths) + len(contents) - 1}; expected the bytes of "
                    "an image in each: remove those rows (paths alone are not followed)"
                )
            lengths += [images.write(content.as_buffer()) for content in contents]
    return lengths


def _batches(path: Path, columns: Columns) -> Iterator[Any]:
    """The contents of all images, some rows at a time, as arrays of bytes."""
    with _opened(path) as file:
        import pyarrow.compute

        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[columns.image]):
            column = batch.column(0)
            yield pyarrow.compute.struct_field(column, "bytes") if columns.is_struct else column


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
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
