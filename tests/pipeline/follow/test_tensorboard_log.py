"""TensorBoard's log, read back by TensorBoard's own readers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from pipeline.follow.tensorboard_log import TensorBoardLog
from pipeline.run.directory import RunDirectory
from pipeline.run.events import Event
from tests.pipeline import fake_run
from tests.pipeline.follow.histories import (
    BEGAN,
    Numbers,
    as_float32,
    bits,
    killed_and_resumed,
    make_run,
    numbers_of,
    row,
    story_of,
)
from tests.pipeline.monitoring import free_port, wait_for


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def read(folder: Path) -> Numbers:
    """As programs do that read logs."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def show(folder: Path, run: RunDirectory, rows: list[Event]) -> dict[str, bytes]:
    """What a follower has written that began with these rows."""
    TensorBoardLog(folder).show(story_of(run, rows))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_readers_find_the_numbers_that_are_not_void(run: RunDirectory, tmp_path: Path) -> None:
    rows = killed_and_resumed()
    show(tmp_path / "log", run, rows)
    wanted = bits(as_float32(numbers_of(rows)))
    assert bits(read(tmp_path / "log")) == wanted
    shown = EventMultiplexer(tensor_size_guidance={"scalars": 0}, size_guidance={"tensors": 0})
    shown.AddRunsFromDirectory(str(tmp_path))
    shown.Reload()
    values = {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
            for event in shown.Tensors("log", tag)
        ]
        for tag in shown.PluginRunToTagToContent("scalars")["log"]
    }
    assert bits(values) == wanted


@pytest.mark.slow
def test_tensorboard_itself_shows_them_also_while_the_log_grows(
    run: RunDirectory, log: Path
) -> None:
    """Its server with its default reader, which is another program, asked as its page asks it."""
    rows, port = killed_and_resumed(), free_port()
    show(log, run, rows[:40])  # killed, resumed at step 16
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log), "--load_fast=true"]
    command += ["--port", str(port), "--reload_interval=1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(tag: str) -> list[tuple[int, float]]:
        words = urllib.parse.urlencode({"run": ".", "tag": tag})
        address = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?{words}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return [(step, value) for _, step, value in json.load(answer)]
        except OSError:  # not yet
            return []

    def is_shown(values: Numbers) -> bool:
        return all(ask(tag) == wanted for tag, wanted in values.items())

    tags = ("train/loss", "val/loss", "evaluate/val/views 1/loss")
    try:
        for shown in (rows[:40], rows):
            show(log, run, shown)
            wanted = as_float32(numbers_of(shown))
            values = {tag: wanted[tag] for tag in tags}
            wait_for(partial(is_shown, values), "these values")
    finally:
        server.kill()
        server.wait()


def test_texts_parameters_and_outcome_are_shown(run: RunDirectory, log: Path) -> None:
    show(log, run, killed_and_resumed())
    events = plugin_event_accumulator.EventAccumulator(str(log))
    events.Reload()
    (alarm,) = events.Tensors("alarm/not_learning")
    assert tensor_util.make_ndarray(alarm.tensor_proto).item() == b"alarm: loss 6.9"
    found = {
        tag: events.SummaryMetadata(tag).plugin_data.content
        for tag in (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    }
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["model.dropout"].number_value == 0.5
    assert start.hparams["precision"].string_value == "bf16"
    end = metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_UNKNOWN, "it was stopped"


def test_a_log_is_the_same_whenever_its_follower_began_or_was_killed(
    run: RunDirectory, log: Path
) -> None:
    """Cut at any byte, and continued by one that has read more rows by then."""
    rows, chance = killed_and_resumed(), random.Random(1)
    whole = show(log / "late", run, rows)
    follower, story = TensorBoardLog(log / "early"), story_of(run, rows[:1])
    for number, event in enumerate(rows[1:]):
        story.add(event)
        if number % 5 == 0:
            follower.show(story)
    follower.show(story)
    assert {path.name: path.read_bytes() for path in (log / "early").iterdir()} == whole
    name = max(whole, key=lambda name: len(whole[name]))
    for _ in range(12):
        folder = log / f"cut-{chance.random()}"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(whole[name][: chance.randrange(len(whole[name]))])
        assert show(folder, run, rows) == whole


def test_a_reader_that_has_half_a_record_gets_the_other_half(run: RunDirectory, log: Path) -> None:
    rows = killed_and_resumed()
    (name, whole), *_ = sorted(show(log, run, rows).items(), key=lambda item: -len(item[1]))
    (log / name).write_bytes(whole[:-9])
    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    show(log, run, [*rows, row(len(rows), "train", 61, 0.5)])
    events.Reload()
    assert events.Scalars("train/loss")[-1].value == 0.5
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 62)]


def test_the_log_of_another_run_in_the_same_directory_is_replaced(run: RunDirectory) -> None:
    log = run.path / "tensorboard"
    show(log, run, killed_and_resumed())
    others = log / "events.out.tfevents.1600000000.host"
    others.write_bytes(b"of another program")
    rows = [row(10_000 + number, kind, number) for number, kind in enumerate(["start", "train"])]
    names = {*show(log, run, rows)}
    assert len(names) == 3
    assert others.name in names
    others.unlink()
    assert bits(read(log)) == bits(as_float32(numbers_of(rows)))


def test_two_runs_cannot_have_one_folder(run: RunDirectory, log: Path) -> None:
    before = show(log, run, killed_and_resumed())
    with pytest.raises(FileExistsError, match="has the log of another run"):
        show(log, run, [row(10_000, "start", 0)])
    assert {path.name: path.read_bytes() for path in log.iterdir()} == before


def test_a_log_that_is_damaged_or_was_written_otherwise_is_written_anew(
    run: RunDirectory, log: Path
) -> None:
    whole = show(log, run, killed_and_resumed())
    name = max(whole, key=lambda name: len(whole[name]))
    for damaged in (whole[name][:500] + b"?" + whole[name][501:], whole[name] + b"?"):
        (log / name).write_bytes(damaged)
        assert show(log, run, killed_and_resumed()) == whole


def test_names_and_words_that_are_no_text_are_shown_as_well_as_they_can_be(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run = RunDirectory(run.path.rename(tmp_path / "name\udcff"))
    saved = json.loads(run.config.read_text())
    saved["config"]["data"] = {"shards": "shards\udcff"}
    run.config.write_text(json.dumps(saved))
    error = fake_run.event("end", 1, BEGAN, outcome="failed", error="shards\udcff is damaged")
    show(tmp_path / "log", run, [row(0, "start", 0), error])
    content = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    assert "name\ufffd".encode() in content
    assert content.count("shards\ufffd".encode()) == 2
