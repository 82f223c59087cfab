"""What an encoding is. All code that writes, checks, reads or shows images asks here."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.jpeg_header import (
    APP1,
    DamagedJpegError,
    jpeg_segments,
    jpeg_size,
    read_jpeg_header,
)
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import Pixels, cut_decoded, cut_jpegs, decode_jpeg
from data_prep.shard_set.rejection import RejectedImage
from data_prep.shard_set.yuv import cut_yuv, decode_yuv, encode_yuv, size_of_yuv

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([1-9]\d{0,8}), ([1-9]\d{0,8}), 3\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """How an encoding stores an image in its tar member."""

    suffix: str
    """How the member's name ends."""
    encode: Callable[[Pixels, int | None], bytes]
    """The content of the member, at a quality of 1 to 100 if there is a `default_quality`."""
    decode: Callable[[bytes], Pixels]
    """The whole image; raises `ValueError` if the content is damaged."""
    size_of: Callable[[bytes], tuple[int, int]]
    """Height and width; raises `ValueError` if the content is of another encoding."""
    cut: Callable[[list[bytes], npt.NDArray[np.int32], Pixels], tuple[int, str] | None]
    """A window of each of N images, as `pixels.cut_jpegs` has it, or as `yuv.cut_yuv`."""
    default_quality: int | None = None
    """None if there is no quality to choose."""
    is_lossy: bool = False
    """Whether what is decoded is not what was encoded."""
    keeps_jpegs: bool = False
    """Whether a JPEG that every decoder reads is stored byte for byte."""
    has_fixed_size: bool = False
    """Whether all images of a shard set have one size."""
    is_raw: bool = False
    """Whether pixels or planes lie behind `header` as they are, row by row."""
    is_planar: bool = False
    """Whether `cut` gives planes, which the device makes pixels of."""
    beton_mode: int | None = None
    """ffcv's number for it: 0 for JPEGs, 1 for pixels row by row; None if it knows none."""
    beton_rows: int = 1
    """How many rows of an image are one row of what a `.beton` says of it."""

    def check_size(self, content: bytes, expected: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width; raises `ValueError` if they are not the expected ones."""
        height, width = self.size_of(content)
        if expected is not None and expected != (height, width):
            raise ValueError(f"the image is {height}×{width}; expected {expected[0]}×{expected[1]}")
        return height, width

    def header(self, size: tuple[int, int] | None) -> bytes:
        """The bytes that every member of a shard set begins with, and that a `.beton` omits."""
        if not self.has_fixed_size:
            return b""
        assert size is not None, "it is fixed"
        content = self.encode(np.zeros((*size, 3), np.uint8), None)
        return content[: content.index(b"\n") + 1]  # where the header of an .npy ends


def _encode_jpeg(pixels: Pixels, quality: int | None) -> bytes:
    """Without chroma subsampling: each pixel keeps its colour."""
    import simplejpeg

    content: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444")
    return content


def _encode_npy(pixels: Pixels, _: int | None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return buffer.getvalue()


def _decode_npy(content: bytes) -> Pixels:
    """The pixels, read-only. Accepts nothing but what `_encode_npy` writes."""
    match = _NPY.match(content)
    if match is not None:
        shape = (int(match[1]), int(match[2]), 3)
        if len(content) == match.end() + shape[0] * shape[1] * 3:
            return np.frombuffer(content, np.uint8, offset=match.end()).reshape(shape)
    try:
        found = np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:  # a damaged header raises anything
        raise ValueError(str(error)) from None
    raise ValueError(
        f"{found.dtype}{list(found.shape)}; expected uint8[height, width, 3], row by row and "
        "nothing more"
    )


def _size_of_npy(content: bytes) -> tuple[int, int]:
    height, width, _ = _decode_npy(content).shape
    return height, width


_JPEG = Codec(
    suffix="jpg",
    encode=_encode_jpeg,
    decode=decode_jpeg,
    size_of=jpeg_size,
    cut=cut_jpegs,
    default_quality=95,
    is_lossy=True,
    keeps_jpegs=True,
    beton_mode=0,
)

_YUV420 = Codec(
    suffix="npy",
    encode=encode_yuv,
    decode=decode_yuv,
    size_of=size_of_yuv,
    cut=cut_yuv,
    is_lossy=True,
    has_fixed_size=True,
    is_raw=True,
    is_planar=True,
    beton_mode=1,
    beton_rows=2,
)

_RGB = Codec(
    suffix="npy",
    encode=_encode_npy,
    decode=_decode_npy,
    size_of=_size_of_npy,
    cut=partial(cut_decoded, _decode_npy),
    has_fixed_size=True,
    is_raw=True,
    beton_mode=1,
)


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that lies upright and that every decoder reads alike, or None.

    Only its header is read.
    """
    from PIL import Image

    from data_prep.shard_set.decoding import find_orientation
    from data_prep.shard_set.jpegs import read_exif

    try:
        segments = list(jpeg_segments(content))
        header = read_jpeg_header(content, segments)
        has_exif = any(marker == APP1 for marker, _, _ in segments)
        is_upright = not has_exif or find_orientation(partial(read_exif, content)) == 1
    except DamagedJpegError:
        return None
    is_small = header.height * header.width <= (Image.MAX_IMAGE_PIXELS or math.inf)
    return (header.height, header.width) if header.is_common and is_upright and is_small else None


def _decode_image(content: bytes) -> Pixels:
    """Decode by the rules of a conversion."""
    from data_prep.shard_set.decoding import read_image

    try:
        return read_image(content)[0]
    except RejectedImage as error:
        raise ValueError(str(error)) from None


def _size_of_image(content: bytes) -> tuple[int, int]:
    size = plain_jpeg_size(content)
    if size is None:
        height, width, _ = _decode_image(content).shape
        size = height, width
    return size


def _cut_images(
    contents: list[bytes], windows: npt.NDArray[np.int32], out: Pixels
) -> tuple[int, str] | None:
    """Plain JPEGs are decoded only as far as the window goes, all others whole."""
    for row, content in enumerate(contents):
        place = slice(row, row + 1)
        is_plain = plain_jpeg_size(content) is not None
        cut = cut_jpegs if is_plain else partial(cut_decoded, _decode_image)
        if (failure := cut([content], windows[place], out[place])) is not None:
            return row, failure[1]
    return None


_IMAGE = Codec(
    suffix="jpg",
    encode=_encode_jpeg,
    decode=_decode_image,
    size_of=_size_of_image,
    cut=_cut_images,
    default_quality=95,
    is_lossy=True,
)


def codec_of(encoding: Encoding) -> Codec:
    """The codec of an encoding."""
    match encoding:
        case "jpeg":
            return _JPEG
        case "rgb":
            return _RGB
        case "yuv420":
            return _YUV420
        case "image":
            return _IMAGE
        case unknown:
            assert_never(unknown)
