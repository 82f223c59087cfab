"""Takes windows out of stored images, by compiled code where there is any.

The C code in `c` decodes no more of a JPEG than its window needs, without the interpreter lock.
Where it could not be built, for lack of a compiler or of libjpeg, this module gives the same bytes,
more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_size_t, c_void_p
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.compiled import MESSAGE_BYTES, address, is_compiled, library
from data_prep.shard_set.jpeg_header import DamagedJpegError, jpeg_size
from data_prep.shard_set.scaling import Resampling, scale_pixels

Pixels = npt.NDArray[np.uint8]
"""uint8 H×W×3."""


BILINEAR, LANCZOS = Resampling.BILINEAR, Resampling.LANCZOS


class Window(NamedTuple):
    """A rectangle of an image."""

    top: int
    left: int
    height: int
    width: int


_WHOLE, _TRUNCATED = 0, 1
"""Verdicts of `judge_jpeg` in C, of which there is a third."""


def judge_jpeg(content: bytes, out: Pixels) -> str | None:
    """Decode all of a JPEG into `out`, uint8 H×W×3 as RGB, or H×W×4 as libjpeg's CMYK.

    Returns libjpeg's first complaint, or None. Raises `DamagedJpegError` if pixels are lost or
    cannot be decoded. It needs the compiled code.
    """
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    target = address(out, np.uint8, *out.shape)
    verdict = library().judge_jpeg(content, c_size_t(len(content)), target, *out.shape, message)
    complaint = message.value.decode(errors="replace")
    if verdict != _WHOLE:
        raise DamagedJpegError(complaint, is_truncated=verdict == _TRUNCATED)
    return complaint or None


def decode_jpeg(content: bytes) -> Pixels:
    """Decode all of a JPEG as `cut_jpegs` does; raises `ValueError` if that is damaged."""
    height, width = jpeg_size(content)
    out = np.empty((1, height, width, 3), np.uint8)
    if (failure := cut_jpegs([content], np.array([[0, 0, height, width]]), out)) is not None:
        raise ValueError(failure[1])
    whole: Pixels = out[0]
    return whole


def cut_jpegs(
    contents: list[bytes], windows: npt.NDArray[np.int32], out: Pixels
) -> tuple[int, str] | None:
    """Decode a window of each of N JPEGs into `out`, uint8 N×H×W×3, scaled if sizes differ.

    `windows` is N×4: top, left, height and width. Scaling is BILINEAR, a triangle filter as wide as
    the scale, first to the height and then to the width; a value differs from Pillow's by at most 1
    of 255. Returns None, or the number of the first one that is damaged, as far as it was read, and
    what is wrong with it. The compiled code reads no further than the window needs.
    """
    if not is_compiled():
        import simplejpeg

        return cut_decoded(simplejpeg.decode_jpeg, contents, windows, out)
    count, height, width, _ = out.shape
    windows = np.ascontiguousarray(windows, np.int32)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    failed = library().cut_jpegs(
        (c_char_p * count)(*contents),
        (c_size_t * count)(*map(len, contents)),
        address(windows, np.int32, count, 4),
        count,
        address(out, np.uint8, count, height, width, 3),
        height,
        width,
        message,
    )
    return None if failed == count else (failed, message.value.decode(errors="replace"))


def cut_decoded(
    decode: Callable[[bytes], Pixels],
    contents: list[bytes],
    windows: npt.NDArray[np.int32],
    out: Pixels,
) -> tuple[int, str] | None:
    """The same for images of any encoding, each of which is decoded whole."""
    for number, (content, window) in enumerate(zip(contents, windows.tolist(), strict=True)):
        try:
            scale_window(decode(content), Window(*window), out[number])
        except ValueError as error:
            return number, str(error)
    return None


def scale_window(
    pixels: Pixels, window: Window, out: Pixels, resampling: Resampling = BILINEAR
) -> None:
    """Scale a window of an image into `out`, as `cut_jpegs` does; LANCZOS is the other filter."""
    top, left, height, width = window
    is_inside = 0 <= top <= pixels.shape[0] - height and 0 <= left <= pixels.shape[1] - width
    if not is_inside or min(height, width) < 1:
        raise ValueError("the window is not inside the image")
    taken = pixels[top : top + height, left : left + width]
    if taken.shape == out.shape:
        out[:] = taken
    elif is_compiled():
        start = address(pixels, np.uint8, *pixels.shape[:2], 3).value or 0
        row_bytes = 3 * pixels.shape[1]
        has_memory = library().scale_window(
            c_void_p(start + top * row_bytes + 3 * left),
            c_size_t(row_bytes),
            height,
            width,
            (BILINEAR, LANCZOS).index(resampling),
            address(out, np.uint8, *out.shape[:2], 3),
            *out.shape[:2],
        )
        if not has_memory:
            raise MemoryError
    else:
        scale_pixels(taken, out, resampling)


def scale_middle(pixels: Pixels, size: tuple[int, int], resampling: Resampling) -> Pixels:
    """Scale the largest window of the shape of `size`, in the middle of an image, to that size."""
    (height, width), (rows, columns) = pixels.shape[:2], size
    height, width = (
        min(height, max(1, width * rows // columns)),
        min(width, max(1, height * columns // rows)),
    )
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    scaled = np.empty((rows, columns, 3), np.uint8)
    scale_window(pixels, Window(top, left, height, width), scaled, resampling)
    return scaled
