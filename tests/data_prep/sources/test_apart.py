"""Files read in processes of their own: what these give, how they end, and what is left of them."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_set.files import atomic_writer
from data_prep.sources import apart
from data_prep.sources.apart import each_apart
from data_prep.sources.source import SourceError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{number}.x" for number in range(7)]
    for number, path in enumerate(found):
        path.write_text(str(number))
    return found


def no_processes() -> bool:
    return not multiprocessing.active_children()


def test_one_process_after_another_keeps_the_order(paths: list[Path]) -> None:
    found = list(each_apart(lambda path: (path.read_text(), os.getpid()), paths))
    assert [path for path, _ in found] == paths
    assert [text for _, (text, _) in found] == [*"0123456"]
    assert len({os.getpid(), *(number for _, (_, number) in found)}) == 8
    assert no_processes()


@pytest.mark.parametrize("num_processes", [2, 20])
def test_several_at_a_time_read_each_file_once(paths: list[Path], num_processes: int) -> None:
    found = each_apart(Path.read_text, paths, num_processes)
    assert dict(found) == {path: path.stem for path in paths}
    assert no_processes()


def test_no_more_than_that_many_read_at_a_time(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "at-work").mkdir()

    def count(path: Path) -> int:
        mark = tmp_path / "at-work" / path.name
        mark.touch()
        time.sleep(0.02)
        try:
            return len(list(mark.parent.iterdir()))
        finally:
            mark.unlink()

    assert max(number for _, number in each_apart(count, paths, 2)) <= 2


def test_large_results_arrive_whole(paths: list[Path]) -> None:
    size = 3 << 20  # more than a pipe holds
    found = each_apart(lambda path: np.full(size, int(path.stem), np.uint8), paths, 3)
    assert {int(array.sum()) for _, array in found} == {size * number for number in range(7)}


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (os.abort, "SIGABRT"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: os._exit(3), "exit code 3"),
    ],
)
def test_the_end_of_a_process_is_a_sentence_that_names_the_file(
    paths: list[Path], end: Callable[[], None], how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def read(path: Path) -> None:
        if path.stem == "3":
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            end()

    done: list[Path] = []
    with pytest.raises(SourceError, match=rf"3\.x ended the process .*\({how}\).*copy it again"):
        done.extend(path for path, _ in each_apart(read, paths))
    assert done == paths[:3]
    assert no_processes()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [SourceError("x is damaged"), OSError(errno.EIO, "no", "x"), ValueError("x")]
)
def test_errors_are_those_of_the_reading(paths: list[Path], error: Exception) -> None:
    def read(_path: Path) -> None:
        raise error

    with pytest.raises(type(error)) as found:
        list(each_apart(read, paths))
    assert str(found.value) == str(error)
    assert no_processes()


def test_memory_has_a_bound(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_MOST_BYTES", 64 << 20)
    ((_, found),) = each_apart(lambda _path: bytes(1 << 20), paths[:1])
    assert len(found) == 1 << 20
    with pytest.raises(SourceError, match=r"0\.x takes more than 67,108,864 bytes of memory"):
        list(each_apart(lambda _path: len(bytearray(256 << 20)), paths))


def test_what_others_write_is_removed_when_one_fails(paths: list[Path], tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if path == paths[0]:
            while not list(tmp_path.glob(".tmp-*")):
                time.sleep(0.01)
            raise SourceError("damaged")
        with atomic_writer(tmp_path / f"{path.stem}.copy") as file:
            file.write(b"half")
            file.flush()
            signal.pause()

    with pytest.raises(SourceError, match="damaged"):
        list(each_apart(read, paths[:2], 2))
    assert sorted(tmp_path.iterdir()) == paths
    assert no_processes()


def test_who_stops_asking_leaves_no_process(paths: list[Path]) -> None:
    def read(path: Path) -> None:
        if path != paths[0]:
            signal.pause()

    with contextlib.closing(each_apart(read, paths, 2)) as found:
        assert next(found)[0] == paths[0]
    assert no_processes()
