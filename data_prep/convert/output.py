"""The output folder of a conversion: whose it is, and what is to be done in it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from data_prep.convert.assignment import ShardName, Task
from data_prep.shard_set.files import remove_leftovers, write_atomically
from data_prep.shard_set.index import check_shard_sizes
from data_prep.shard_set.locks import is_locked, locked
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Encoding,
    Manifest,
    hash_class_names,
    read_manifest,
)

Settings = Mapping[str, str | int | float | None]
"""All that decides the bytes of a shard set, by name."""

_WORK_FOLDER = ".conversion"
_PLAN_NAME = "settings.json"
_OWN_FIELDS = ("source", "name", "encoding", "seed", "class_names_sha256")
"""Settings that have a field of their own in the manifest; the others are its options."""
_TASK_LOCK = re.compile(r"task-(\d+)-of-(\d+)\.lock")


class ConversionError(ValueError):
    """A conversion cannot start or go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionPlan:
    """What a conversion makes; with the records of its shards enough to publish it."""

    settings: Settings
    class_names: tuple[str, ...]
    num_samples: Mapping[str, int]
    """By split."""

    @property
    def encoding(self) -> Encoding:
        return cast(Encoding, self.settings["encoding"])

    @property
    def manifest_options(self) -> Settings:
        return {name: value for name, value in self.settings.items() if name not in _OWN_FIELDS}

    def shard_names(self) -> list[ShardName]:
        """All shards, in the order in which tasks share them out."""
        length = self.settings["samples_per_shard"]
        assert isinstance(length, int)
        return [
            ShardName(split, number)
            for split, count in self.num_samples.items()
            for number in range(-(-count // length))
        ]


def find_finished(shards: Path, settings: Settings | None = None) -> Manifest | None:
    """The manifest of the shard set that is there already, or None.

    Raises `ConversionError` if it was made with other `settings` than those given, and
    `ShardSetError` if shards are missing or cut.
    """
    if not (shards / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(shards)
    if settings is not None:
        _check_same(shards, _settings_of(manifest), settings)
    clean_up(shards)  # the writer may have been killed just before that
    for split in manifest.splits.values():
        check_shard_sizes(shards, split)
    return manifest


@contextlib.contextmanager
def locked_output(
    shards: Path, plan: ConversionPlan | None, task: Task | None = None
) -> Iterator[tuple[Path, ConversionPlan]]:
    """Keep other conversions out of the folder, which is made if need be.

    With a `task`, other tasks of the same division may be at work in it at the same time. Without a
    `plan` a conversion must have been begun there, whatever its settings.
    Yields the folder inside it for the records of finished shards, and the plan. That folder
    outlives a conversion that fails or is killed: by it the next one goes on. Unfinished files are
    removed before and after, but for those of other tasks. Raises `ConversionError` if another
    conversion is at work, if none was begun that should have been, or if the folder holds anything
    but what one with the same settings left.
    """
    records = shards / _WORK_FOLDER
    if plan is not None:
        _check_empty(shards)
        records.mkdir(parents=True, exist_ok=True)
    elif not (records / _PLAN_NAME).exists():
        raise ConversionError(
            f"{shards} holds no conversion that was begun: run 'python -m data_prep shard' first"
        )
    with _hold(shards, task):
        if plan is None:
            plan = _load(records / _PLAN_NAME)
        else:
            with locked(records / "settings.lock", wait_seconds=math.inf):
                _record_plan(shards, plan)
        own = task.pick(plan.shard_names()) if task else ()
        files = {name for shard in own for name in (shard.filename, shard.record_filename)}
        names = files if task else None
        _remove_leftovers(shards, names)
        try:
            yield records, plan
        finally:
            _remove_leftovers(shards, names)


def find_divisions(records: Path) -> list[int]:
    """Into how many tasks the conversion was divided so far, in different attempts."""
    matches = (_TASK_LOCK.fullmatch(path.name) for path in records.iterdir())
    return sorted({int(match[2]) for match in matches if match})


def clean_up(shards: Path) -> None:
    """Remove what only an unfinished conversion needs."""
    _remove_leftovers(shards)
    shutil.rmtree(shards / _WORK_FOLDER, ignore_errors=True)


@contextlib.contextmanager
def _hold(shards: Path, task: Task | None) -> Iterator[None]:
    """Hold the locks of a whole conversion, or those of one task."""
    records = shards / _WORK_FOLDER
    busy = f"another conversion is writing to {shards}: wait until it ends"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(records / "lock", shared=task is not None))
            if task is not None:
                busy = f"{task} is at work on {shards} already: wait until it ends"
                lock = records / f"task-{task.number}-of-{task.num_tasks}.lock"
                held.enter_context(locked(lock))
                _check_division(shards, task)
            finished = (shards / MANIFEST_NAME).exists()
        except BlockingIOError:
            raise ConversionError(busy) from None
        except FileNotFoundError:
            finished = True  # and cleaned up, with the locks
        if finished:
            raise ConversionError(
                f"another process has finished {shards} just now: run the command again to see"
            )
        yield


def _check_division(shards: Path, task: Task) -> None:
    """Refuse to work beside tasks of another division: two would write one shard."""
    for path in (shards / _WORK_FOLDER).iterdir():
        match = _TASK_LOCK.fullmatch(path.name)
        if match and int(match[2]) != task.num_tasks and is_locked(path):
            raise ConversionError(
                f"task {match[1]} of {match[2]} is at work on {shards}: wait until it ends, or "
                f"give --num-tasks {match[2]}"
            )


def _record_plan(shards: Path, plan: ConversionPlan) -> None:
    """Note what is made, or check that it is the same as noted before."""
    path = shards / _WORK_FOLDER / _PLAN_NAME
    if path.exists():
        _check_same(shards, _load(path).settings, plan.settings)
    else:
        write_atomically(path, json.dumps(asdict(plan)).encode())


def _load(path: Path) -> ConversionPlan:
    try:
        fields = json.loads(path.read_bytes())
        plan = ConversionPlan(**{**fields, "class_names": tuple(fields["class_names"])})
        if hash_class_names(plan.class_names) != plan.settings["class_names_sha256"]:
            raise ValueError("class_names do not match their hash")
        if not isinstance(plan.settings["samples_per_shard"], int):
            raise ValueError("samples_per_shard is not a number")
        return plan
    except (ValueError, TypeError, KeyError) as error:
        raise ConversionError(
            f"{path} is damaged ({error}): empty the --output folder and run the command again"
        ) from None


def _remove_leftovers(shards: Path, names: Collection[str] | None = None) -> None:
    remove_leftovers(shards, names)
    remove_leftovers(shards / _WORK_FOLDER, names)


def _check_empty(shards: Path) -> None:
    others = sorted(path.name for path in shards.iterdir()) if shards.is_dir() else []
    if others and _WORK_FOLDER not in others:
        raise ConversionError(
            f"--output {shards} is not empty ({others[0]}, …) and holds no shard set, finished or "
            "not; give a new or an empty folder"
        )


def _settings_of(manifest: Manifest) -> Settings:
    """The settings a finished shard set was made with."""
    return {**{name: getattr(manifest, name) for name in _OWN_FIELDS}, **manifest.options}


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
