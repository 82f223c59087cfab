"""How memory is filled: with all cores, in people's view, and through the host's page cache."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shard_set import progress
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data.open import Data, open_data
from tests.data_prep.raw_data import run_cli
from tests.pipeline.worlds import SINGLE, fused, world_of_equals

NUM_TRAIN, SIDE = 60, 128
IMAGE_BYTES = SIDE * SIDE * 3 // 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planes") / "shards"
    sizes = ("--num-train", NUM_TRAIN, "--num-val", 9, "--size", SIDE, "--encoding", "yuv420")
    assert run_cli("shard", "synthetic", "--output", path, *sizes).returncode == 0
    return path


@contextlib.contextmanager
def opened(shards: Path, decode_threads: int = 1) -> Iterator[Data]:
    data = DataConfig(shards=str(shards), reader="resident", decode_threads=decode_threads)
    with contextlib.ExitStack() as resources:
        yield open_data(Config(data=data, global_batch_size=10), torch.device("cpu"), resources)


def fill_memory(shards: Path) -> None:
    """As a job does before it trains."""
    with opened(shards) as data:
        mesh = fused(SINGLE)
        data.open_batches(data.plan(1), SINGLE, mesh, lambda *_: {})
        data.open_evaluation("val", 1, data.normalizer()).resident(SINGLE, mesh)


@pytest.mark.slow
def test_rank_0_shows_images_speed_and_time(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    fill_memory(shards)
    text = capsys.readouterr().out
    for split, count in (("train", NUM_TRAIN), ("val", 9)):
        line = rf"{split} into memory: {count} of {count} images, [\d,]+ a second, [\d.]+ GB/s\n"
        assert re.search(line, text), text


@pytest.mark.slow
def test_all_cores_of_the_host_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    with opened(shards, decode_threads=5) as data:
        threads = [
            data._filling(world_of_equals(size)).config.data.decode_threads for size in (1, 2, 4)
        ]
    assert threads == [12, 6, 5], "those that were asked for at least"


def resident_pages(path: Path) -> tuple[int, int]:
    """How many pages of a file are in the page cache, of how many."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        states = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        place = array.__array_interface__["data"][0]
        arguments = ctypes.c_void_p(place), ctypes.c_size_t(len(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(*arguments, states.ctypes.data_as(ctypes.c_void_p)) == 0
        del array
    return int((states & 1).sum()), len(states)


def bytes_read_from_disks() -> int:
    (count,) = re.findall(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(count)


@pytest.mark.slow
def test_a_second_job_reads_memory_and_no_disk(shards: Path) -> None:
    """Of all that is filled nothing is dropped from the page cache, or read past it."""
    tars = sorted(shards.glob("*.tar"))
    total = sum(path.stat().st_size for path in tars)
    assert total > NUM_TRAIN * IMAGE_BYTES
    fill_memory(shards)  # what is imported and compiled once
    for path in tars:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(resident_pages(path)[0] for path in tars):
        pytest.skip("this file system keeps all files in memory")
    before = bytes_read_from_disks()
    fill_memory(shards)
    assert bytes_read_from_disks() - before >= total

    def reads_no_disk() -> bool:
        before = bytes_read_from_disks()
        fill_memory(shards)
        pages = map(resident_pages, tars)
        is_kept = all(in_memory == count for in_memory, count in pages)
        return is_kept and bytes_read_from_disks() - before < total / 10

    # A host whose memory is short may read something again, or what else the process needs.
    assert any(reads_no_disk() for _ in range(20))
