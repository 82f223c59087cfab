"""The versions of what a run leaves, and the refusal of newer ones; see `docs/data-format.md`.

A file that names no version has version 1. New fields and kinds leave the version as it is: a
reader leaves out what it does not know. A change that older readers would misread raises it, and
this program goes on reading all versions before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.shard_set.typed import read_json

CONFIG_VERSION = 1
"""`config.json`."""
EVENTS_VERSION = 1
"""`events.jsonl`: every `run` row names it, for the rows from there on."""
DATASET_VERSION = 1
"""`data.json`, with `mean_image.npy` beside it."""
PREDICTIONS_VERSION = 1
"""`predictions/*.npz`."""
NEIGHBOURS_VERSION = 1
"""`neighbours.json`."""
RANK_FILE_VERSION = 1
"""`metrics/rank-*.prom`."""


def check_format_version(found: object, known: int, where: object) -> None:
    """Raise `ValueError` if the file at `where`, of the version `found`, cannot be read here.

    `known` is the newest version that this program reads.
    """
    if type(found) is not int or not 1 <= found <= known:
        raise ValueError(
            f"{where} has format version {found}; this program reads up to version {known}: use "
            "the version of it that wrote the file"
        )


def read_versioned(path: Path, known: int) -> dict[str, Any]:
    """The object in a file of JSON, of a version that is read here.

    Raises `OSError` if it cannot be read, and `ValueError` if it is damaged or newer.
    """
    content = path.read_bytes()
    try:
        found: dict[str, Any] = read_json(content)
        version = found.get("format_version", 1)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it from a copy") from None
    check_format_version(version, known, path)
    return found
