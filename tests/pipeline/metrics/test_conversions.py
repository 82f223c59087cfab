"""Which files of conversions are served, among whatever else lies there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from data_prep.convert.assignment import Task
from data_prep.convert.metrics import publishing
from data_prep.shard_set.families import exposition
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics.conversions import RootConversions
from tests.pipeline.monitoring import assert_clean_exposition, parse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of two tasks that are at work."""
    folder = tmp_path / "runs" / "conversions"
    for number in (0, 1):
        with publishing(folder, tmp_path / "shards", Task(number, 2)) as metrics:
            metrics.begin(100 + number)
    return folder


def expected_samples(folder: Path) -> dict[tuple[str, str], float]:
    """By conversion and task, as they are served."""
    registry = CollectorRegistry()
    registry.register(RootConversions(folder.parent))
    text = exposition(registry)
    if text:
        assert_clean_exposition(text)
    samples = parse(text)
    assert {name.rpartition("alexnet_convert_")[0] for name, _ in samples} <= {""}
    return {
        (dict(labels)["conversion"], dict(labels)["task"]): found
        for (name, labels), found in samples.items()
        if name == "alexnet_convert_expected_samples"
    }


def test_those_at_work_are_served(folder: Path, tmp_path: Path) -> None:
    assert expected_samples(folder) == {("shards", "0"): 100, ("shards", "1"): 101}
    ended = time.time() - KEPT_SECONDS - 1
    os.utime(folder / "convert-shards-0.prom", (ended, ended))
    assert expected_samples(folder) == {("shards", "1"): 101}
    assert expected_samples(tmp_path / "none" / "conversions") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"alexnet_convert_samples_total{ 1\n",
        b"# TYPE alexnet_convert_samples_total\n",
        b"\xff\n",
        b"# TYPE alexnet_run_outcome gauge\nalexnet_run_outcome 1\n",
        b'alexnet_convert_expected_samples{conversion="x",task=""} 1\n' + bytes(1 << 20),
    ],
)
def test_other_files_hide_nothing(folder: Path, content: bytes) -> None:
    (folder / "convert-other.prom").write_bytes(content)
    assert len(expected_samples(folder)) == 2


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = (folder / "convert-shards-0.prom").rename(tmp_path / "outside.prom")
    (folder / "convert-shards-0.prom").symlink_to(outside)
    os.mkfifo(folder / "convert-pipe.prom")
    assert expected_samples(folder) == {("shards", "1"): 101}
