"""JPEGs with restart markers: a reader can decode a part of them without what lies before it.

See ITU-T T.81, sections B.2.4.4 and E.1.4. It needs the compiled code.
"""

from __future__ import annotations

import ctypes
from ctypes import c_size_t, c_void_p
from typing import Any

import numpy as np

from data_prep.shard_set.compiled import address, library
from data_prep.shard_set.pixels import Pixels

MAX_RESTART = 65_535
"""MCUs between two markers: what a JPEG can say."""

_DONE, _SHORT_OF_MEMORY = 1, 2
"""Outcomes in C, of which there is a third."""


def recode_jpeg(content: bytes, restart: int) -> bytes | None:
    """The same picture with restart markers, or None if it is to be left as it came.

    The result is one scan of baseline Huffman codes, with tables made for it, and has the quantised
    coefficients of `content`: both are read and compared. A marker stands behind each `restart`
    MCUs, or behind a number of them that divides a row, if there is one above half of `restart`;
    with 0 there is none. JFIF, Exif, ICC profile, Adobe's marker and comments are kept, all other
    metadata is dropped.

    Left are damaged JPEGs, all that libjpeg complains of, and what baseline codes cannot say: more
    than 8 bits in a value or a quantization table, more than 10 blocks in an MCU, lossless codes.
    Raises `MemoryError`.
    """
    return _run(library().recode_jpeg, content, c_size_t(len(content)), restart)


def encode_jpeg(pixels: Pixels, quality: int, restart: int) -> bytes:
    """A JPEG of uint8 H×W×3 with such markers, else like simplejpeg's, to the last coefficient.

    `quality` is 1 to 100; chroma is not subsampled; Huffman tables are the standard's. Raises
    `ValueError` if a side is longer than JPEGs can be, and `MemoryError`.
    """
    height, width, _ = pixels.shape
    pixels = np.ascontiguousarray(pixels)
    rows = address(pixels, np.uint8, height, width, 3)
    content = _run(library().encode_jpeg, rows, height, width, quality, restart)
    if content is None:
        raise ValueError(f"the image is {height}×{width}; expected at most 65500×65500")
    return content


def _run(function: Any, *arguments: Any) -> bytes | None:
    """Call what gives a JPEG in memory of C's; None if it declines."""
    found, num_bytes = c_void_p(), c_size_t()
    try:
        outcome = function(*arguments, ctypes.byref(found), ctypes.byref(num_bytes))
        if outcome == _SHORT_OF_MEMORY:
            raise MemoryError
        return ctypes.string_at(found, num_bytes.value) if outcome == _DONE else None
    finally:
        library().free_jpeg(found)
