"""The output folder of a conversion: its locks, its plan, and what is finished in it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.convert.assignment import ShardName, Task
from data_prep.shard_set.files import remove_leftovers, write_atomically
from data_prep.shard_set.foreign import WORK_FOLDER
from data_prep.shard_set.index import check_shard_sizes
from data_prep.shard_set.locks import is_locked, locked
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Encoding,
    Manifest,
    hash_class_names,
    read_manifest,
)
from data_prep.shard_set.typed import check_types, read_json

Settings = Mapping[str, Any]
"""All that decides the bytes of a shard set, by name."""

_PLAN_NAME = "settings.json"
OWN_FIELDS = ("source", "name", "encoding", "seed", "class_names_sha256")
"""Settings that have a field of their own in the manifest; the others are its options."""
_UNWRITTEN = {"restart": 0}
"""Settings that no file has where this is their value: older versions did not know them."""
_TASK_LOCK = re.compile(r"task-(\d+)-of-(\d+)\.lock")


class ConversionError(ValueError):
    """A conversion cannot start or go on."""


_MOST_SHARDS = 1 << 22
"""Of a split: a plan that names more is damaged, and would fill memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionPlan:
    """What a conversion makes. With the records of the shards it is enough to publish them."""

    settings: Settings
    class_names: tuple[str, ...]
    num_samples: Mapping[str, int]
    """By split."""

    @property
    def encoding(self) -> Encoding:
        encoding: Encoding = self.settings["encoding"]
        return encoding

    def shard_names(self) -> list[ShardName]:
        """All shards, in the order in which they are dealt to tasks."""
        length = self.settings["samples_per_shard"]
        return [
            ShardName(split, number)
            for split, count in self.num_samples.items()
            for number in range(-(-count // length))
        ]


def record_path(shards: Path, name: ShardName) -> Path:
    """Where the record of a finished shard is until the conversion ends."""
    return shards / WORK_FOLDER / f"{name.stem}.npz"


def find_finished(shards: Path, settings: Settings | None = None) -> Manifest | None:
    """The manifest, if the shard set is finished.

    Raises `ConversionError` if it was made with other `settings`, and `ShardSetError` if shards are
    missing or cut.
    """
    if not (shards / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(shards)
    if settings is not None:
        before = {name: getattr(manifest, name) for name in OWN_FIELDS}
        _check_same(shards, {**before, **manifest.options}, settings)
    clean_up(shards)  # the writer may have been killed just before that
    for split in manifest.splits.values():
        check_shard_sizes(shards, split)
    return manifest


@contextlib.contextmanager
def locked_output(shards: Path, plan: ConversionPlan, task: Task | None = None) -> Iterator[None]:
    """Make the folder if it is not there, and keep other conversions out of it.

    With a `task`, other tasks of the same division may write to it at the same time. Unfinished
    files are removed before and after, except those of other tasks. Records of finished shards
    stay, so that the next conversion goes on from them.
    Raises `ConversionError` if another conversion is at work, or if the folder holds anything but
    what one with the same settings left.
    """
    _make_folder(shards)
    with _hold(shards, task):
        with locked(shards / WORK_FOLDER / "settings.lock", wait_seconds=math.inf):
            if (begun := begun_plan(shards)) is not None:
                _check_same(shards, begun.settings, plan.settings)
            else:
                content = json.dumps(asdict(plan)).encode()
                write_atomically(shards / WORK_FOLDER / _PLAN_NAME, content)
        names = None
        if task is not None:
            own = task.pick(plan.shard_names())
            names = {
                path for name in own for path in (name.filename, record_path(shards, name).name)
            }
        _remove_leftovers(shards, names)
        try:
            yield
        finally:
            _remove_leftovers(shards, names)


def begun_tasks(shards: Path) -> list[Task]:
    """All tasks that were begun so far, of every division."""
    matches = (_TASK_LOCK.fullmatch(path.name) for path in (shards / WORK_FOLDER).iterdir())
    return [Task(int(match[1]), int(match[2])) for match in matches if match]


def clean_up(shards: Path) -> None:
    """Remove what only an unfinished conversion needs."""
    _remove_leftovers(shards)
    shutil.rmtree(shards / WORK_FOLDER, ignore_errors=True)


def _make_folder(shards: Path) -> None:
    """Make the folder, and one in it for records; refuse one that holds other things."""
    try:
        shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(
            f"--output {shards} cannot be made a folder: {error.strerror}; give another one"
        ) from None
    others = sorted(path.name for path in shards.iterdir())
    if others and WORK_FOLDER not in others:
        raise ConversionError(
            f"--output {shards} is not empty ({others[0]}, …) and holds no shard set, finished or "
            "not; give a new or an empty folder"
        )
    (shards / WORK_FOLDER).mkdir(exist_ok=True)


@contextlib.contextmanager
def _hold(shards: Path, task: Task | None) -> Iterator[None]:
    """Hold the locks of a whole conversion, or of one task."""
    busy = f"another conversion is writing to {shards}: wait until it ends"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(shards / WORK_FOLDER / "lock", shared=task is not None))
            if task is not None:
                busy = f"{task} is at work on {shards} already: wait until it ends"
                held.enter_context(locked(_task_lock(shards, task)))
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


def _task_lock(shards: Path, task: Task) -> Path:
    return shards / WORK_FOLDER / f"task-{task.number}-of-{task.num_tasks}.lock"


def _check_division(shards: Path, task: Task) -> None:
    """Refuse to run beside tasks of another division: two tasks would write the same shard."""
    for other in begun_tasks(shards):
        if other.num_tasks != task.num_tasks and is_locked(_task_lock(shards, other)):
            raise ConversionError(
                f"{other} is at work on {shards}: wait until it ends, or give "
                f"--num-tasks {other.num_tasks}"
            )


def begun_plan(shards: Path) -> ConversionPlan | None:
    """The plan of the conversion that was begun in the folder, or None."""
    path = shards / WORK_FOLDER / _PLAN_NAME
    if not path.exists():
        return None
    try:
        fields = read_json(path.read_bytes())
        plan = ConversionPlan(**{**fields, "class_names": tuple(fields["class_names"])})
        check_types(plan, ConversionPlan, "")
        if hash_class_names(plan.class_names) != plan.settings["class_names_sha256"]:
            raise ValueError("class_names do not match their hash")
        counts = plan.num_samples.values()
        if not 0 <= min(counts) <= max(counts) <= _MOST_SHARDS * plan.settings["samples_per_shard"]:
            raise ValueError("num_samples is not as written")
        plan.shard_names()
        return plan
    except Exception as error:  # settings may hold anything
        raise ConversionError(
            f"{path} is damaged ({error}): empty the --output folder and run the command again"
        ) from None


def _remove_leftovers(shards: Path, names: Collection[str] | None = None) -> None:
    remove_leftovers(shards, names)
    remove_leftovers(shards / WORK_FOLDER, names)


def _check_same(path: Path, before: Settings, now: Settings) -> None:
    before, now = {**_UNWRITTEN, **before}, {**_UNWRITTEN, **now}
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
