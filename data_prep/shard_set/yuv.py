"""Images as planes of luma and of chroma at half the size: half the bytes of RGB.

An image of H×W pixels, both even, is an .npy of uint8 (3H/2)×W in the layout I420, which OpenCV and
others take as it is: H rows of Y, then the H/2×W/2 values of Cb and those of Cr. Values are those
of JFIF (ITU-T T.871). Each value of chroma is that of two by two pixels.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.pixels import BILINEAR, Pixels

Planes = npt.NDArray[np.uint8]
"""uint8 (3H/2)×W."""

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)

_FROM_RGB = np.array(
    [[19595, -11059, 32768], [38470, -21709, -27439], [7471, 32768, -5329]], np.int64
)
"""Y, Cb and Cr of red, green and blue, times 2**16: the constants of libjpeg."""
_HALF = 1 << 15


def encode_yuv(pixels: Pixels, _: int | None) -> bytes:
    """Raises `ValueError` if a side is odd."""
    height, width, _channels = pixels.shape
    if height % 2 or width % 2:
        raise ValueError(f"the image is {height}×{width}; expected even sides: give an even --size")
    luma, *chroma = (pixels @ _FROM_RGB).transpose(2, 0, 1)  # exact: whole numbers below 2**26
    squares = np.reshape(chroma, (2, height // 2, 2, width // 2, 2)).sum((2, 4)) + (128 << 18)
    planes = [(luma + _HALF) >> 16, (squares + 4 * _HALF - 1) >> 18]
    joined = np.concatenate([np.minimum(plane, 255).ravel() for plane in planes])
    buffer = io.BytesIO()
    np.save(buffer, joined.reshape(-1, width).astype(np.uint8), allow_pickle=False)
    return buffer.getvalue()


def _planes_of(content: bytes) -> Planes:
    match = _NPY.match(content)
    rows, width = (int(match[1]), int(match[2])) if match is not None else (0, 0)
    is_whole = match is not None and len(content) == match.end() + rows * width
    if match is None or not is_whole or rows % 3 or width % 2 or not rows * width:
        raise ValueError("it is no .npy of uint8[3 height / 2, width] with even height and width")
    return np.frombuffer(content, np.uint8, offset=match.end()).reshape(rows, width)


def size_of_yuv(content: bytes) -> tuple[int, int]:
    """Height and width of the image."""
    rows, width = _planes_of(content).shape
    return 2 * rows // 3, width


def decode_yuv(content: bytes) -> Pixels:
    """The whole image."""
    luma, *chroma = _split(_planes_of(content))
    terms = np.stack(chroma_terms(np.stack(chroma).astype(np.int32)), -1).repeat(2, 0).repeat(2, 1)
    pixels: Pixels = np.clip(luma[..., None] + terms, 0, 255).astype(np.uint8)
    return pixels


def chroma_terms(chroma: Any) -> tuple[Any, Any, Any]:
    """What Cb and Cr add to Y in red, green and blue, as libjpeg computes it.

    `chroma` is int32 2×…, of numpy or torch; returns three int32 ….
    """
    cb, cr = chroma[0] - 128, chroma[1] - 128
    return (
        (91881 * cr + _HALF) >> 16,
        (_HALF - 22554 * cb - 46802 * cr) >> 16,
        (116130 * cb + _HALF) >> 16,
    )


def cut_yuv(
    contents: list[bytes], windows: npt.NDArray[np.int32], out: Planes
) -> tuple[int, str] | None:
    """As `pixels.cut_jpegs`, but `out` is of planes again: uint8 N×(3H/2)×W.

    A window of another size, or at an odd place, is scaled plane by plane, by Pillow's BILINEAR.
    """
    size = 2 * out.shape[1] // 3, out.shape[2]
    for number, (content, window) in enumerate(zip(contents, windows.tolist(), strict=True)):
        top, left, height, width = window
        try:
            luma, *chroma = _split(_planes_of(content))
        except ValueError as error:
            return number, str(error)
        is_inside = 0 <= top <= luma.shape[0] - height and 0 <= left <= luma.shape[1] - width
        if not is_inside or min(height, width) < 1:
            return number, "the window is not inside the image"
        is_as_is = (height, width) == size and not (top % 2 or left % 2)
        box = np.array([left, top, left + width, top + height])
        for plane, target, step in zip(
            (luma, *chroma), _split(out[number]), (1, 2, 2), strict=True
        ):
            if is_as_is:
                x, y, end_x, end_y = box // step
                target[:] = plane[y:end_y, x:end_x]
            else:
                from PIL import Image

                sides = target.shape[1], target.shape[0]
                scaled = Image.fromarray(plane).resize(sides, BILINEAR, tuple(box / step))
                target[:] = np.asarray(scaled)
    return None


def _split(planes: Planes) -> tuple[Planes, Planes, Planes]:
    """Y, Cb and Cr."""
    rows, width = planes.shape
    height = 2 * rows // 3
    cb, cr = planes[height:].reshape(2, height // 2, width // 2)
    return planes[:height], cb, cr
