"""JPEGs that are cut, changed or put together in a wrong way, anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from data_prep.shard_set.pixels import Window
from tests.data_prep.odd_jpegs import segment
from tests.data_prep.shard_set.comparing import WIDTH, WINDOWS, attempt, compare_all, good
from tests.data_prep.shard_set.decoders import crop, crop_by_libjpeg, needs_decoder
from tests.data_prep.shard_set.jpeg_writer import (
    DHT,
    DNL,
    DQT,
    DRI,
    SAMPLINGS,
    SOF0,
    SOS,
    Pieces,
)

pytestmark = needs_decoder

INTERVALS = (0, 2)
"""MCUs between restart markers."""


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_file_that_is_cut_anywhere(interval: int) -> None:
    pieces = good(interval)
    content = pieces.join()
    found = compare_all(content[:stop] for stop in range(len(content)))
    assert found["complaint"] > len(content)


@pytest.mark.parametrize("sampling", ["gray", "4:4:4", "4:2:0"])
def test_data_that_stop_early_before_a_proper_end(sampling: str) -> None:
    """A window whose last bits are missing is not given; else it is that of the undamaged image."""
    changed = good(0, sampling)
    whole, data = crop_by_libjpeg(changed.join(), WINDOWS[0]), changed.data[0]
    windows = [Window(0, 0, height, width) for height in (8, 16, 32) for width in (8, 24, WIDTH)]
    found: Counter[str] = Counter()
    for stop in range(len(data)):
        changed.data[0] = data[:stop]
        for window in windows:
            pixels = attempt(crop, changed.join(), window)
            if isinstance(pixels, str):
                assert pixels == attempt(crop_by_libjpeg, changed.join(), window)
                found["complaint"] += 1
            else:
                assert np.array_equal(pixels, whole[: window.height, : window.width])
                found["pixels"] += 1
    assert min(found["complaint"], found["pixels"]) > len(data), found


@pytest.mark.parametrize("interval", INTERVALS)
def test_any_byte_is_another(interval: int) -> None:
    pieces = good(interval)
    content = pieces.join()

    def damaged() -> Iterator[bytes]:
        for place, value in enumerate(content):
            for other in {value ^ 1, value ^ 0x90, 0xFF} - {value}:
                yield content[:place] + bytes((other,)) + content[place + 1 :]

    found = compare_all(damaged())
    assert min(found["complaint"], found["ours"], found["libjpeg's"]) > len(content)


@pytest.mark.parametrize("interval", INTERVALS)
def test_any_byte_is_missing_or_there_twice(interval: int) -> None:
    pieces = good(interval)
    content = pieces.join()
    missing = (content[:place] + content[place + 1 :] for place in range(len(content)))
    assert compare_all(missing)["complaint"] > len(content)
    twice = (content[:place] + content[place - 1 :] for place in range(1, len(content)))
    assert compare_all(twice)["complaint"] > len(content)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("interval", [0, 1, 3])
def test_segments_of_the_header_in_any_order(interval: int, sampling: str) -> None:
    pieces = good(interval, sampling)

    def damaged() -> Iterator[bytes]:
        for number, part in enumerate(pieces.header):
            changed = pieces.copy()
            del changed.header[number]
            yield changed.join()
            for place in range(len(pieces.header) + 1):
                changed = pieces.copy()
                changed.header.insert(place, part)
                yield changed.join()
        for first, second in combinations(range(len(pieces.header)), 2):
            changed = pieces.copy()
            header = changed.header
            header[first], header[second] = header[second], header[first]
            yield changed.join()

    found = compare_all(damaged())
    assert min(found["complaint"], found["ours"]) > 10


def lies_between(pieces: Pieces) -> Iterator[bytes]:
    """Restart markers and segments in the wrong place, and what does not belong between them."""
    last = len(pieces.restarts)
    for number in range(last):
        for marker in (*range(0xD0, 0xDA), DNL, DRI, SOS, SOF0, DHT, DQT, 0xE1, 0xFE, 0x01, 0xFF):
            changed = pieces.copy()
            changed.restarts[number] = bytes((0xFF, marker))
            yield changed.join()
            changed.restarts[number] = segment(marker, bytes(4)) + pieces.restarts[number]
            yield changed.join()
        for restart in (b"", pieces.restarts[number] * 2, b"\xff", b"\0", b"\xff\0"):
            changed = pieces.copy()
            changed.restarts[number] = restart
            yield changed.join()
        for stray in (b"\xff", b"\xff\xff\xff", b"\0", b"\xff\0", b"\x12", bytes(9), b"\xff\xd1"):
            changed = pieces.copy()
            changed.restarts[number] = stray + pieces.restarts[number]
            yield changed.join()
            changed.restarts[number] = pieces.restarts[number] + stray
            yield changed.join()
    for number in range(last + 1):
        for data in (
            *(b"", b"\0", b"\xff\0", pieces.data[number][:-1], pieces.data[number] * 2),
            *(pieces.data[number][: len(pieces.data[number]) // 2], pieces.data[number - 1]),
            *(pieces.data[number] + b"\0", pieces.data[number] + b"\xff", b"\x55" * 400),
        ):
            changed = pieces.copy()
            changed.data[number] = data
            yield changed.join()
    for count in range(1, min(last, 9) + 1):  # too few, and too many
        changed = pieces.copy()
        del changed.data[-count:], changed.restarts[-count:]
        yield changed.join()
        changed = pieces.copy()
        changed.data += pieces.data[:count]
        changed.restarts += pieces.restarts[:count]
        yield changed.join()
    for first, second in combinations(range(last + 1), 2):
        changed = pieces.copy()
        parts = changed.data
        parts[first], parts[second] = parts[second], parts[first]
        yield changed.join()
    for first, second in combinations(range(last), 2):
        changed = pieces.copy()
        marks = changed.restarts
        marks[first], marks[second] = marks[second], marks[first]
        yield changed.join()


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 7])
def test_segments_that_lie(interval: int) -> None:
    pieces = good(interval)
    found = compare_all(lies_between(pieces))
    assert min(found["complaint"], found["ours"]) > 20


@pytest.mark.parametrize("interval", [0, 1, 2, 7, 15])
@pytest.mark.parametrize("said", [0, 1, 2, 3, 5, 8, 14, 15, 16, 65535])
def test_a_restart_interval_that_is_not_the_one_of_the_data(interval: int, said: int) -> None:
    pieces = good(interval)
    lie = segment(DRI, said.to_bytes(2))
    contents = []
    for place in range(len(pieces.header) + 1):
        changed = pieces.copy()
        changed.header.insert(place, lie)  # the last one counts, before the scan
        contents.append(changed.join())
    contents.append(pieces.join() + lie)
    found = compare_all(contents)
    assert found["ours"] > 0
