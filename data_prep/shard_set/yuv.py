"""Images as planes of luma and of chroma at half the size: half the bytes of RGB.

An image of H×W pixels, both even, is an .npy of uint8 (3H/2)×W in the layout I420, which OpenCV and
others take as it is: H rows of Y, then the H/2×W/2 values of Cb and those of Cr. Values are those
of JFIF (ITU-T T.871). Each value of chroma is that of two by two pixels.
"""

from __future__ import annotations

import io
import re

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.pixels import Pixels, Window, scale_window

Planes = npt.NDArray[np.uint8]
"""uint8 (3H/2)×W."""

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+)\), \} *\n",
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
    planes = _planes_of(content)
    height, width = 2 * len(planes) // 3, planes.shape[1]
    return _to_rgb(planes, Window(0, 0, height, width))


def cut_yuv(
    contents: list[bytes], windows: npt.NDArray[np.int32], out: Pixels
) -> tuple[int, str] | None:
    """As `pixels.cut_jpegs`: no more is converted than the window needs."""
    for number, (content, window) in enumerate(zip(contents, windows.tolist(), strict=True)):
        top, left, height, width = window
        even = top & ~1, left & ~1  # where a value of chroma begins
        bottom, right = (-(-end // 2) * 2 for end in (top + height, left + width))
        try:
            region = Window(*even, bottom - even[0], right - even[1])
            pixels = _to_rgb(_planes_of(content), region)
            scale_window(pixels, Window(top & 1, left & 1, height, width), out[number])
        except ValueError as error:
            return number, str(error)
    return None


def _to_rgb(planes: Planes, window: Window) -> Pixels:
    """A window with even sides at an even place."""
    rows, width = planes.shape
    height = 2 * rows // 3
    top, left, bottom, right = *window[:2], window.top + window.height, window.left + window.width
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError("the window is not inside the image")
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    halves = chroma[:, top // 2 : bottom // 2, left // 2 : right // 2]
    size = window.width, window.height
    luma = Image.fromarray(np.ascontiguousarray(planes[top:bottom, left:right]))
    both = (
        Image.fromarray(np.ascontiguousarray(half)).resize(size, Image.Resampling.NEAREST)
        for half in halves
    )
    return np.asarray(Image.merge("YCbCr", (luma, *both)).convert("RGB"))
