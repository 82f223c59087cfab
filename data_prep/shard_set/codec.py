"""What an encoding is: whoever writes, checks, reads or shows images asks here."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from typing import assert_never

import numpy as np
import numpy.typing as npt
import simplejpeg

from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import Pixels, cut_decoded, cut_jpegs, decode_jpeg, jpeg_size

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+), 3\), \} *\n",
    re.DOTALL,
)


class Codec(ABC):
    """An encoding: how the tar member of an image is written and read."""

    suffix: str
    """How the member's name ends."""
    beton_mode: int | None = None
    """ffcv's number for it: 0 for JPEGs, 1 for pixels row by row; None if it knows none."""
    default_quality: int | None = None
    """Of 1 to 100, when an image is encoded; None if that loses nothing."""
    keeps_jpegs = False
    """Whether a JPEG that every decoder reads is stored byte for byte."""
    has_fixed_size = False
    """Whether all images have one size, so that their pixels lie behind `header` as they are."""

    @abstractmethod
    def encode(self, pixels: Pixels, quality: int | None = None) -> bytes:
        """The content of the member."""

    @abstractmethod
    def decode(self, content: bytes) -> Pixels:
        """The whole image; raises `ValueError` if the content is damaged."""

    def size_of(self, content: bytes) -> tuple[int, int]:
        """Height and width; raises `ValueError` if the content is of another encoding."""
        height, width, _ = self.decode(content).shape
        return height, width

    def cut(
        self, contents: list[bytes], windows: npt.NDArray[np.int32], out: Pixels
    ) -> tuple[int, str] | None:
        """A window of each of N images, as `pixels.cut_jpegs` has it."""
        return cut_decoded(self.decode, contents, windows, out)

    def header(self, size: tuple[int, int] | None) -> bytes:
        """What all members of a shard set begin with, and a `.beton` leaves out."""
        if not self.has_fixed_size:
            return b""
        assert size is not None, "it is fixed"
        blank = np.zeros((*size, 3), np.uint8)
        return self.encode(blank)[: -blank.nbytes]


class _Jpeg(Codec):
    suffix = "jpg"
    beton_mode = 0
    default_quality = 95
    keeps_jpegs = True

    def encode(self, pixels: Pixels, quality: int | None = None) -> bytes:
        """At 4:4:4: each pixel keeps its colour."""
        quality = quality or self.default_quality
        content: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444")
        return content

    def decode(self, content: bytes) -> Pixels:
        return decode_jpeg(content)

    def size_of(self, content: bytes) -> tuple[int, int]:
        return jpeg_size(content)

    def cut(
        self, contents: list[bytes], windows: npt.NDArray[np.int32], out: Pixels
    ) -> tuple[int, str] | None:
        return cut_jpegs(contents, windows, out)


class _Rgb(Codec):
    """The .npy of the pixels, uint8 H×W×3."""

    suffix = "npy"
    beton_mode = 1
    has_fixed_size = True

    def encode(self, pixels: Pixels, quality: int | None = None) -> bytes:
        assert quality is None
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
        return buffer.getvalue()

    def decode(self, content: bytes) -> Pixels:
        """The pixels, which cannot be written to; only what `encode` makes is taken."""
        match = _NPY.match(content)
        if match is not None:
            shape = (int(match[1]), int(match[2]), 3)
            if len(content) == match.end() + shape[0] * shape[1] * 3:
                return np.frombuffer(content, np.uint8, offset=match.end()).reshape(shape)
        try:
            found = np.load(io.BytesIO(content))
        except Exception as error:  # a damaged header raises anything
            raise ValueError(str(error)) from None
        raise ValueError(
            f"{found.dtype}{list(found.shape)}; expected uint8[height, width, 3], row by row and "
            "nothing more"
        )


_JPEG, _RGB = _Jpeg(), _Rgb()


def codec_of(encoding: Encoding) -> Codec:
    """What the encoding does."""
    match encoding:
        case "jpeg":
            return _JPEG
        case "rgb":
            return _RGB
        case unknown:
            assert_never(unknown)
