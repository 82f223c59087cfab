"""TensorBoard's log of a run: one file that a follower appends to, as a function of the rows alone.

A follower that was killed, at whatever byte, left a beginning of what the next one has to write,
and that goes on at the next byte: readers may have half a record. Values are rounded to float32: no
other numbers are shown by the reader of TensorBoard that is its default. Parameters and outcome are
in a small file of their own, which is replaced.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, assert_never

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_TENSOR,
    Summary,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.record_writer import RecordWriter

from data_prep.shard_set.files import write_atomically
from pipeline.follow.story import Edit, Outcome, Story

_FILE_VERSION = "brain.Event:2"

_NAME = "events.out.tfevents.{}.follow"
"""Logs of other programs have no such names, and are left alone."""


class TensorBoardLog:
    """The log in `folder`, which `tensorboard --logdir` shows, given it or a folder above."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._num_edits = 0
        """How many of the story's edits it has."""

    def __str__(self) -> str:
        return str(self._folder)

    def show(self, story: Story) -> None:
        """Raises `OSError` if the log cannot be written."""
        records = b"".join(map(_encode, story.edits[self._num_edits :]))
        self._num_edits = len(story.edits)
        if self._path is None:
            self._path = self._open(story, records)
        else:
            _append(self._path, records)
        parameters = self._folder / _NAME.format("0")  # before the log, where readers end
        content = _encode_parameters(story)
        if not parameters.is_file() or parameters.read_bytes() != content:
            write_atomically(parameters, content)

    def _open(self, story: Story, records: bytes) -> Path:
        """Make the log one that holds `records`; that of a run that was here before is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        began = story.began
        path = self._folder / _NAME.format(f"{began:017.6f}")
        others = [old for old in self._folder.glob(_NAME.format("[1-9]*")) if old != path]
        if others and self._folder.parent != story.run.path:
            raise FileExistsError(
                f"{self._folder} has the log of another run: give another --output"
            )
        version = _record(Event(wall_time=began, file_version=_FILE_VERSION))
        content = version + _session_start(0) + records
        before = path.read_bytes() if path.is_file() else None
        if before is not None and content.startswith(before):
            _append(path, content[len(before) :])
        else:  # also if this version of TensorBoard encodes otherwise
            write_atomically(path, content)
        for old in others:
            old.unlink()
        return path


def _encode(edit: Edit) -> bytes:
    records = [] if edit.forget_from is None else [_session_start(edit.forget_from)]
    for point in edit.points:
        if isinstance(point.value, str):
            content = TensorProto(dtype=DT_STRING, string_val=[point.value.encode()])
            value = Summary.Value(tag=point.tag, tensor=content)
            value.metadata.CopyFrom(texts.create_summary_metadata("", ""))
            value.metadata.data_class = DATA_CLASS_TENSOR
        else:
            value = Summary.Value(tag=point.tag, simple_value=point.value)
        summary = Summary(value=[value])
        records.append(_record(Event(wall_time=point.time, step=point.step, summary=summary)))
    return b"".join(records)


def _session_start(step: int) -> bytes:
    """What makes readers forget the points at `step` and later; the first one only some do."""
    return _record(Event(step=step, session_log=SessionLog(status=SessionLog.START)))


def _append(path: Path, records: bytes) -> None:
    with path.open("ab") as file:
        file.write(records)


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _encode_parameters(story: Story) -> bytes:
    """What TensorBoard's page of hyperparameters shows."""
    start = SessionStartInfo(start_time_secs=story.began, group_name=story.name)
    for name, value in story.parameters.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    records = [_record(Event(wall_time=story.began, file_version=_FILE_VERSION))]
    data = HParamsPluginData(session_start_info=start)
    records.append(_session(hparams.SESSION_START_INFO_TAG, data, story.began))
    if story.ended is not None:
        end = SessionEndInfo(status=_status(story.outcome), end_time_secs=story.ended)
        data = HParamsPluginData(session_end_info=end)
        records.append(_session(hparams.SESSION_END_INFO_TAG, data, story.ended))
    return b"".join(records)


def _session(tag: str, data: HParamsPluginData, time: float) -> bytes:
    value = Summary.Value(tag=tag, tensor=hparams.NULL_TENSOR)
    value.metadata.data_class = DATA_CLASS_TENSOR
    value.metadata.plugin_data.plugin_name = hparams.PLUGIN_NAME
    value.metadata.plugin_data.content = data.SerializeToString(deterministic=True)
    return _record(Event(wall_time=time, summary=Summary(value=[value])))


def _status(outcome: Outcome) -> Any:
    match outcome:
        case "completed":
            return api_pb2.STATUS_SUCCESS
        case "failed":
            return api_pb2.STATUS_FAILURE
        case "stopped":
            return api_pb2.STATUS_UNKNOWN
        case "running":
            return api_pb2.STATUS_RUNNING
        case unknown:
            assert_never(unknown)
