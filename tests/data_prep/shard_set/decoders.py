"""The decoders in the compiled code, one at a time."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from ctypes import c_size_t, c_void_p
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_set.compiled import MESSAGE_BYTES, is_compiled, library
from data_prep.shard_set.pixels import Pixels, Window, cut_jpegs

HAS_VECTORS = platform.machine() != "x86_64" or "avx2" in Path("/proc/cpuinfo").read_text()
"""Whether the processor has what our decoder needs: AVX2, on x86-64."""

needs_decoder = pytest.mark.skipif(
    not is_compiled() or not HAS_VECTORS,
    reason="data_prep.shard_set._pixels was not built, or the processor has no AVX2",
)


def crop(content: bytes, window: Window) -> Pixels:
    """By whichever decoder; raises `ValueError` with its complaint."""
    out = np.empty((1, *window[2:], 3), np.uint8)
    if (failure := cut_jpegs([content], np.array([window]), out)) is not None:
        raise ValueError(failure[1])
    found: Pixels = out[0]
    return found


def crop_by_libjpeg(content: bytes, window: Window) -> Pixels:
    """By libjpeg alone; raises `ValueError` with its complaint."""
    decode_window = library().decode_window
    decode_window.restype = ctypes.c_char_p
    out = np.empty((*window[2:], 3), np.uint8)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    place = (ctypes.c_int * 4)(*window)
    size = c_size_t(len(content))
    problem = decode_window(content, size, place, c_void_p(out.ctypes.data), message)
    if problem is not None:
        raise ValueError(problem.decode(errors="replace"))
    return out


def decode_windows(content: bytes, windows: Sequence[Window]) -> Pixels:
    """Windows of one size by our own decoder, N×height×width×3; it must not decline any."""
    places = np.array(windows, np.int32)
    out = np.empty((len(windows), *windows[0][2:], 3), np.uint8)
    decode_crop, size = library().decode_crop, c_size_t(len(content))
    place, target = places.ctypes.data, out.ctypes.data
    for number in range(len(windows)):
        is_decoded = decode_crop(content, size, c_void_p(place), c_void_p(target))
        assert is_decoded, (windows[number], content)
        place += places[0].nbytes
        target += out[0].nbytes
    return out


def is_answered(content: bytes, window: Window) -> bool:
    """Whether our own decoder answers for a window."""
    out = np.empty((*window[2:], 3), np.uint8)
    place = (ctypes.c_int * 4)(*window)
    target = c_void_p(out.ctypes.data)
    return bool(library().decode_crop(content, c_size_t(len(content)), place, target))
