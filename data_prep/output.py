"""The output folder of a conversion: whose it is, and what is left to do in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.files import remove_leftovers, write_atomically
from data_prep.manifest import MANIFEST_NAME, Manifest, read_manifest

Settings = Mapping[str, str | int | float | None]
"""All that decides the bytes of a shard set, by name."""

_WORK_FOLDER = ".conversion"


class ConversionError(ValueError):
    """A conversion cannot start or go on."""


def find_finished(shards: Path, settings: Settings) -> Manifest | None:
    """The manifest of the shard set that is there already, or None.

    Raises `ConversionError` if it was made with other `settings`.
    """
    if not (shards / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(shards)
    _check_same(shards, _settings_of(manifest), settings)
    clean_up(shards)  # the writer may have been killed just before that
    return manifest


@contextlib.contextmanager
def claim(shards: Path, settings: Settings) -> Iterator[Path]:
    """Keep other conversions out of the folder, which is made if need be.

    Yields the folder inside it for the records of finished shards. It outlives a conversion that
    fails or is killed: by it the next one goes on. Raises `ConversionError` if another conversion
    is at work, or if the folder holds anything but what one with the same `settings` left.
    """
    records = shards / _WORK_FOLDER
    if not records.exists():
        _check_empty(shards)
    records.mkdir(parents=True, exist_ok=True)
    with (records / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(
                f"another conversion is writing to --output {shards}: wait for it, or give another"
            ) from None
        job = records / "settings.json"
        if job.exists():
            _check_same(shards, _read_settings(job), settings)
        else:
            write_atomically(job, json.dumps(settings).encode())
        _remove_leftovers(shards)
        try:
            yield records
        finally:
            _remove_leftovers(shards)


def clean_up(shards: Path) -> None:
    """Remove what only an unfinished conversion needs."""
    _remove_leftovers(shards)
    shutil.rmtree(shards / _WORK_FOLDER, ignore_errors=True)


def _remove_leftovers(shards: Path) -> None:
    remove_leftovers(shards)
    remove_leftovers(shards / _WORK_FOLDER)


def _check_empty(shards: Path) -> None:
    others = sorted(path.name for path in shards.iterdir()) if shards.is_dir() else []
    if others:
        raise ConversionError(
            f"--output {shards} is not empty ({others[0]}, …) and holds no shard set, finished or "
            "not; give a new or an empty folder"
        )


def _settings_of(manifest: Manifest) -> Settings:
    """The settings a finished shard set was made with."""
    return {
        "source": manifest.source,
        "encoding": manifest.encoding,
        "seed": manifest.seed,
        "class_names_sha256": manifest.class_names_sha256,
        **manifest.options,
    }


def _read_settings(job: Path) -> Settings:
    try:
        settings: Settings = json.loads(job.read_bytes())
    except ValueError as error:
        raise ConversionError(
            f"{job} is damaged ({error}): empty the --output folder and run the command again"
        ) from None
    return settings


def _check_same(path: Path, before: Settings, now: Settings) -> None:
    differences = [
        f"the {name.removesuffix('_sha256').replace('_', ' ')} are not the same"
        if name.endswith("_sha256")
        else f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ConversionError(
            f"--output {path} was begun with other settings: {'; '.join(differences)}; "
            "give the same input and options, or another folder"
        )
