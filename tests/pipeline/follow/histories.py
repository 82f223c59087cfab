"""Runs for the tests of followers: rows of every kind, kills and resumes, late evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from pipeline.follow.points import points_of
from pipeline.follow.story import Story
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import EventLog, history_of
from pipeline.run.events import Event
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    make_images,
    start_fields,
    train_fields,
    write_config,
    write_shard_set,
)

BEGAN = 1_750_000_000.25


def make_run(root: Path) -> RunDirectory:
    """A run that has not begun."""
    labels = np.arange(6) % 3
    write_shard_set(root / "shards", make_images(labels), labels, ["a", "b", "c"])
    run = RunDirectory(root / "run")
    write_config(run, root / "shards")
    return run


def row(number: int, kind: str, step: int, salt: float = 0.0) -> Event:
    """The row of that number in its file; other `salt`, other values."""
    fields: Mapping[str, Mapping[str, object]] = {
        "start": start_fields(None),
        "resume": start_fields(step),
        "train": train_fields(step, 100 / 3 + salt) | {"loss": salt or math.nan},
        "eval": eval_fields(7, 20, 36, 36) | {"loss": 0.1 + salt},
        "evaluate": eval_fields(9, 21, 36, 36) | {"by": "evaluate", "loss": 0.3 + salt},
        "checkpoint": checkpoint_fields("periodic"),
        "alarm": {"reason": "not_learning", "loss": 6.9},
        "signal": {"source": "SIGTERM"},
        "end": {"outcome": "stopped"},
        "complete": {"outcome": "completed"},
    }
    kinds = {"start": "run", "resume": "run", "evaluate": "eval", "complete": "end"}
    found: Event = event(kinds.get(kind, kind), step, BEGAN + number, **fields[kind])
    return found


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Attempts that go on at a step that is done, in order; evaluations of checkpoints between."""
    rows = [row(0, "start", 0)]
    step, salts = 0, st.floats(1e-6, 9, allow_subnormal=False)
    kinds = st.sampled_from(["train", "train", "eval", "checkpoint", "alarm", "evaluate", "kill"])
    for kind in draw(st.lists(kinds, max_size=25)):
        if kind == "kill":
            step = draw(st.integers(0, step))
            rows.append(row(len(rows), "resume", step))
        elif kind == "evaluate":
            rows.append(row(len(rows), kind, draw(st.integers(0, step)), draw(salts)))
        else:
            step += kind == "train"
            rows.append(row(len(rows), kind, step, draw(salts)))
    return rows


def killed_and_resumed() -> list[Event]:
    """A run that was killed twice, with evaluations of its checkpoints, one of them late."""
    kinds: list[tuple[str, int]] = [("start", 0)]
    for begin, end in ((0, 24), (16, 40), (32, 60)):
        kinds += [("resume", begin)] * (begin > 0)
        for step in range(begin + 1, end + 1):
            kinds += [("train", step)] + [("eval", step), ("checkpoint", step)] * (step % 8 == 0)
        kinds += [("evaluate", end // 8 * 8), ("evaluate", 8)]
    kinds += [("alarm", 60), ("signal", 60), ("end", 60)]
    return [row(number, kind, step, (number + 1) / 7) for number, (kind, step) in enumerate(kinds)]


def write(run: RunDirectory, rows: Iterable[Event]) -> None:
    log = EventLog(run.events)
    for event_ in rows:
        log.write(event_)
    log.close()


def story_of(run: RunDirectory, rows: Iterable[Event]) -> Story:
    rows = list(rows)
    story = Story(run, rows[0].time)
    for event_ in rows:
        story.add(event_)
    return story


Numbers = dict[str, list[tuple[int, float]]]


def numbers_of(rows: Iterable[Event]) -> Numbers:
    """What has to be shown: the numbers of rows that are not void, by tag and step; newest wins."""
    points = [point for row in history_of(rows) for point in points_of(row)]
    newest = {(point.tag, point.step): point.value for point in points}
    found: Numbers = {}
    for (tag, step), value in sorted(newest.items(), key=lambda item: item[0][1]):
        if isinstance(value, float):
            found.setdefault(tag, []).append((step, value))
    return found


def as_float32(numbers: Numbers) -> Numbers:
    return {tag: [(s, float(np.float32(v))) for s, v in found] for tag, found in numbers.items()}


def bits(numbers: Numbers) -> dict[str, list[tuple[int, bytes]]]:
    """With the bytes of each value: NaN is itself, and 0 is not -0."""
    return {tag: [(s, np.float64(v).tobytes()) for s, v in f] for tag, f in numbers.items()}
