"""Decodes whole JPEGs, and tells harmless complaints from lost pixels.

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

from data_prep.convert.tidy import tidy_jpeg
from data_prep.shard_set.jpeg_header import JPEG_END, DamagedJpegError, JpegHeader
from data_prep.shard_set.pixels import Pixels, Verdict, judge_jpeg

_STRAY_BYTES_AT_END = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_LOST_PIXELS = re.compile(r"Corrupt JPEG data|Premature end")


def read_jpeg(content: bytes, header: JpegHeader) -> tuple[Pixels, str | None]:
    """Decode if all pixels can be had, to uint8 H×W×3; `header` is that of the content.

    Returns what there is to complain of, too; if that is nothing, every decoder reads it as this
    one does. Raises `DamagedJpegError`.
    """
    oddity = None if header.is_common else f"not every decoder reads {header}"
    channels = {1: 3, 3: 3, 4: 4}.get(len(header.samplings))
    if channels is None:
        raise DamagedJpegError(f"{len(header.samplings)} components; expected 1, 3 or 4")
    out = np.empty((header.height, header.width, channels), np.uint8)
    judgement = judge_jpeg(content, out) if header.has_common_coding else None
    if judgement is None:
        out, complaint = _read_plainly(content, "RGB" if channels == 3 else "CMYK")
    else:
        verdict, complaint = judgement
        if verdict != Verdict.WHOLE:
            raise DamagedJpegError(str(complaint), is_truncated=verdict == Verdict.TRUNCATED)
    if out.shape[2] == 4:
        out = np.asarray(Image.fromarray(255 - out, "CMYK").convert("RGB"))  # Adobe's are inverted
    return out, complaint or oddity


def _read_plainly(content: bytes, colorspace: Literal["RGB", "CMYK"]) -> tuple[Pixels, str | None]:
    """Without the compiled code, or where its libjpeg may be without what it takes.

    simplejpeg tells the last complaint only: what hides another one is tidied away first. Pillow,
    which reads samplings that simplejpeg has no name for, does not tell of data that stop early.
    """
    try:
        return simplejpeg.decode_jpeg(content, colorspace), None
    except ValueError as error:
        complaint = str(error)
    try:
        return _decode_tidied(tidy_jpeg(content), colorspace), complaint
    except ValueError as error:
        what = str(error)
    if _LOST_PIXELS.match(what):
        raise DamagedJpegError(what, is_truncated="remature" in what)
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = np.asarray(image.convert(colorspace))
            return found if colorspace == "RGB" else 255 - found, complaint
    except Exception as error:  # Pillow's decoders raise anything
        raise DamagedJpegError(str(error), is_truncated="truncated" in str(error)) from None


def _decode_tidied(tidied: bytes, colorspace: Literal["RGB", "CMYK"]) -> Pixels:
    """Decode what `tidy_jpeg` gives, without bytes between its data and its end."""
    while True:
        try:
            whole: Pixels = simplejpeg.decode_jpeg(tidied, colorspace)
        except ValueError as error:
            if (stray := _STRAY_BYTES_AT_END.match(str(error))) is None:
                raise
            tidied = tidied[: -len(JPEG_END) - int(stray[1])] + JPEG_END
        else:
            return whole
