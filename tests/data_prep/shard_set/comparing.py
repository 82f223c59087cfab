"""Damaged JPEGs: our decoder changes neither a picture nor a complaint of libjpeg.

The one difference: where libjpeg complains of data that the window does not need, the window's
pixels are given, and they are those that libjpeg would give if it went on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from data_prep.shard_set.pixels import Pixels, Window
from tests.data_prep.shard_set.decoders import crop, crop_by_libjpeg, is_answered
from tests.data_prep.shard_set.jpeg_writer import SAMPLINGS, Form, Pieces, paint, write_jpeg
from tests.data_prep.shard_set.second_look import is_right

HEIGHT, WIDTH = 40, 44
WINDOWS = (
    Window(0, 0, HEIGHT, WIDTH),
    Window(0, 0, 5, 6),
    Window(17, 20, 9, 10),
    Window(34, 36, 6, 8),
)
"""Of an image of 3×3 MCUs, with 4:2:0."""


def good(interval: int, sampling: str = "4:2:0") -> Pieces:
    return write_jpeg(
        paint("photo", HEIGHT, WIDTH),
        Form(samplings=SAMPLINGS[sampling], interval=interval, quality=40),
    )


def attempt(
    decode: Callable[[bytes, Window], Pixels], content: bytes, window: Window
) -> Pixels | str:
    """The pixels, or the complaint."""
    try:
        return decode(content, window)
    except ValueError as error:
        return str(error)


def compare(content: bytes, window: Window) -> str:
    """Compare what our decoder and libjpeg make of a window; returns whose pixels there are."""
    expected, found = attempt(crop_by_libjpeg, content, window), attempt(crop, content, window)
    if isinstance(found, str):
        assert found == expected
        return "complaint"
    if isinstance(expected, str):
        assert is_right(content, window, found), expected
        return "not needed"
    assert np.array_equal(found, expected)
    return "ours" if is_answered(content, window) else "libjpeg's"


def compare_all(contents: Iterable[bytes]) -> Counter[str]:
    return Counter(compare(content, window) for content in contents for window in WINDOWS)
