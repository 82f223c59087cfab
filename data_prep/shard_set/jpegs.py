"""Decodes whole JPEGs, and distinguishes harmless complaints from lost pixels.

The decoder is that of training: `data_prep.shard_set.pixels`. What it refuses goes through
simplejpeg and Pillow, to be stored as something that it reads.
"""

from __future__ import annotations

import io
import re
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.jpeg_header import (
    APP0,
    APP1,
    APP14,
    JPEG_END,
    JPEG_START,
    PICTURE,
    START_OF_SCAN,
    DamagedJpegError,
    JpegHeader,
    jpeg_segments,
)
from data_prep.shard_set.pixels import Pixels, judge_jpeg

_STRAY_BYTES_AT_END = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_LOST_PIXELS = re.compile(
    r"Premature end|Corrupt JPEG data: (?!\d+ extraneous bytes before marker 0x(?!d[0-7]))"
)
"""Complaints of libjpeg. Bytes that belong to nothing do no harm but before a restart mark."""
_HUFFMAN = (0, 1)  # and sequential; no decoder notices that arithmetic codes stop early
_SEQUENTIAL = (*_HUFFMAN, 9)
_YCC, _YCCK = 1, 2


def read_jpeg(content: bytes, header: JpegHeader) -> tuple[Pixels, str | None]:
    """Decode to uint8 H×W×3; `header` is that of the content.

    Also returns a complaint; without one, every decoder reads the same pixels. Raises
    `DamagedJpegError` if pixels are lost.
    """
    oddity = None if header.is_common else f"not every decoder reads {header}"
    channels = {1: 3, 3: 3, 4: 4}.get(len(header.samplings))
    if channels is None:
        raise DamagedJpegError(f"{len(header.samplings)} components; expected 1, 3 or 4")
    out = np.empty((header.height, header.width, channels), np.uint8)
    if header.has_common_coding and is_compiled():
        complaint = judge_jpeg(content, out)
    else:
        out, complaint = _read_plainly(content, header, "RGB" if channels == 3 else "CMYK")
    if out.shape[2] == 4:
        out = np.asarray(Image.fromarray(255 - out, "CMYK").convert("RGB"))  # Adobe inverts them
    return out, complaint or oddity


def _read_plainly(
    content: bytes, header: JpegHeader, colorspace: Literal["RGB", "CMYK"]
) -> tuple[Pixels, str | None]:
    """Without the compiled code, or where its libjpeg may be without what it takes.

    simplejpeg refuses what libjpeg complains of, and reports one complaint only. Pillow reads it,
    but does not notice data that stop early.
    """
    try:
        return simplejpeg.decode_jpeg(content, colorspace), None
    except ValueError as error:
        complaint = str(error)
    tidied = _tidied(content, header, complaint)
    try:
        return simplejpeg.decode_jpeg(tidied, colorspace), complaint
    except ValueError as error:
        what = str(error)
    if _LOST_PIXELS.match(what):
        raise DamagedJpegError(what, is_truncated="remature" in what)
    try:
        with Image.open(io.BytesIO(tidied)) as image:
            found = np.asarray(image.convert(colorspace))
            return found if colorspace == "RGB" else 255 - found, complaint
    except Exception as error:  # Pillow's decoders raise anything
        raise DamagedJpegError(str(error), is_truncated="truncated" in str(error)) from None


def _tidied(content: bytes, header: JpegHeader, complaint: str) -> bytes:
    """The same picture without what hides complaints of lost pixels behind harmless ones."""
    tidied, stop = JPEG_START, 0
    for marker, start, stop in jpeg_segments(content):  # without what lies between them
        segment = bytearray(content[start:stop])
        if marker == APP0 and segment.startswith(b"JFIF\0"):
            segment[5:6] = b"\x01"  # the version
        if marker == APP14 and len(segment) > 11 and segment[11] > _YCCK:
            segment[11] = _YCC if len(header.samplings) == 3 else _YCCK  # as libjpeg takes it
        if marker == START_OF_SCAN and header.kind in _SEQUENTIAL:
            segment[-3:] = bytes((0, 63, 0))
        tidied += bytes((0xFF, marker)) + content[start - 2 : start] + segment
    data = content[stop:]
    if header.kind in _HUFFMAN and JPEG_END not in data:
        data = data.rstrip(b"\xff") + JPEG_END
    elif (stray := _STRAY_BYTES_AT_END.match(complaint)) is not None:
        data = data[: data.rindex(JPEG_END) - int(stray[1])] + JPEG_END
    return tidied + data


def has_picture_alone(raw: bytes) -> bool:
    """Whether the header of a JPEG has only what decoding needs: no EXIF, no profile."""
    place = len(JPEG_START)
    for marker, start, stop in jpeg_segments(raw):
        if marker not in PICTURE or start != place + 4:
            return False
        place = stop
    return True


def read_exif(raw: bytes) -> Image.Exif:
    """Of a JPEG that Pillow does not open."""
    exif = Image.Exif()
    for marker, start, stop in jpeg_segments(raw):
        if marker == APP1:
            exif.load(raw[start:stop])
    return exif
