"""The output folder of a conversion: whose it is, what is done in it, and when it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import remove_leftovers, write_atomically
from data_prep.manifest import MANIFEST_NAME, Manifest, read_manifest

Settings = Mapping[str, str | int | float | None]
"""All that decides the bytes of a shard set, by name."""

_WORK_FOLDER = ".conversion"


class ConversionError(ValueError):
    """A conversion cannot start or go on."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """A folder that only this process converts into, until the block of `claim` is left."""

    path: Path

    @property
    def records(self) -> Path:
        """Where the records of finished shards are kept until all are finished."""
        return self.path / _WORK_FOLDER

    def finished(self, settings: Settings) -> Manifest | None:
        """The manifest if the shard set is there already, made with the same `settings`.

        Without one, the folder is made ready to start, or to go on with what was begun.
        Raises `ConversionError` if the folder holds anything else.
        """
        if (self.path / MANIFEST_NAME).exists():
            manifest = read_manifest(self.path)
            _check_same(self.path, settings_of(manifest), settings)
            self.clean_up()
            return manifest
        job = self.records / "settings.json"
        if job.exists():
            _check_same(self.path, json.loads(job.read_bytes()), settings)
        else:
            self._check_empty()
            write_atomically(job, json.dumps(settings).encode())
        remove_leftovers(self.path)
        remove_leftovers(self.records)
        return None

    def _check_empty(self) -> None:
        others = sorted(path.name for path in self.path.iterdir() if path.name != _WORK_FOLDER)
        if others:
            raise ConversionError(
                f"--output {self.path} is not empty ({others[0]}) and holds no shard set, finished "
                "or not; give a new or empty folder"
            )

    def clean_up(self) -> None:
        """Remove what only an unfinished conversion needs."""
        remove_leftovers(self.path)
        shutil.rmtree(self.records)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[OutputFolder]:
    """Make the folder and keep other conversions out of it.

    Raises `ConversionError` if one is at work there, `OSError` if the folder cannot be written.
    """
    output = OutputFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    output.records.mkdir(exist_ok=True)
    with (output.records / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(
                f"another conversion is writing to --output {path}: wait for it, or give another"
            ) from None
        yield output


def settings_of(manifest: Manifest) -> Settings:
    """The settings a finished shard set was made with."""
    return {
        "source": manifest.source,
        "encoding": manifest.encoding,
        "seed": manifest.seed,
        "class_names_sha256": manifest.class_names_sha256,
        **manifest.options,
    }


def _check_same(path: Path, before: Settings, now: Settings) -> None:
    differences = [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ConversionError(
            f"--output {path} belongs to another conversion: {'; '.join(differences)}; "
            "give the former input and options, or another folder"
        )
