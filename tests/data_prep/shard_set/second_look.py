"""Whether pixels are right although libjpeg complains: of what lies elsewhere in the JPEG."""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.shard_set.jpeg_header import jpeg_size
from data_prep.shard_set.pixels import Pixels, Window
from tests.data_prep.odd_jpegs import parts, segment
from tests.data_prep.shard_set.decoders import crop_by_libjpeg
from tests.data_prep.shard_set.jpeg_writer import DHT, DRI, SOF0, SOS, codes_of, to_bytes

MAX_PIXELS = 1 << 24
"""Of an image that is looked at."""


def is_right(content: bytes, window: Window, pixels: Pixels) -> bool:
    """Whether libjpeg gives these pixels if it goes on in spite of its complaints, or else where
    each restart segment with which it has trouble holds zeros instead.
    """
    top, left, height, width = window
    assert np.prod(jpeg_size(content)) < MAX_PIXELS, "it is too large to be decoded again"
    for decode in (_patiently, _by_pillow):
        try:
            whole = decode(content)
        except (ValueError, OSError):
            continue
        if np.array_equal(whole[top : top + height, left : left + width], pixels):
            return True
    try:
        return np.array_equal(crop_by_libjpeg(_without_damage(content), window), pixels)
    except ValueError:
        return False


def _patiently(content: bytes) -> Pixels:
    whole: Pixels = simplejpeg.decode_jpeg(content, strict=False)
    return whole


def _by_pillow(content: bytes) -> Pixels:
    """It takes all samplings, but no file that is cut."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _without_damage(content: bytes) -> bytes:
    *header, data = parts(content)
    frame = next(part for part in header if part[1] in (SOF0, SOF0 + 1))
    interval = max(int.from_bytes(part[4:6]) for part in header if part[1] == DRI)
    across, down, count = _mcus(frame)
    interval = min(interval, count)
    marks = [part for part in header[1:] if part[1] not in (DRI, *range(SOF0, SOF0 + 2), SOS)]
    size = (8 * down).to_bytes(2) + (2 * interval * 8 * across).to_bytes(2)
    twice = [*marks, frame[:5] + size + frame[9:], segment(DRI, interval.to_bytes(2)), header[-1]]
    zeros = to_bytes(_zeros(header) * interval)
    data = re.split(rb"\xff+[\xd8-\xfe\x01-\xcf]", data)[0]
    segments = re.split(rb"\xff+[\xd0-\xd7]", data)
    repaired = b"".join(header)
    for number in range(-(-count // interval)):
        alone = b"".join((b"\xff\xd8", *twice, segments[number], b"\xff\xd0", zeros, b"\xff\xd9"))
        if number:
            repaired += bytes((0xFF, 0xD0 + (number - 1) % 8))
        try:
            crop_by_libjpeg(alone, Window(0, 0, 8 * down, 2 * interval * 8 * across))
            repaired += segments[number]
        except ValueError:
            repaired += zeros
    return repaired + b"\xff\xd9"


def _mcus(frame: bytes) -> tuple[int, int, int]:
    """Blocks across and down in an MCU, and how many MCUs there are."""
    height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    factors = [divmod(frame[11 + 3 * i], 16) for i in range(frame[9])]
    across, down = (max(sides) for sides in zip(*factors, strict=True))
    if len(factors) == 1:
        across = down = 1
    return across, down, -(-height // (8 * down)) * -(-width // (8 * across))


def _zeros(header: list[bytes]) -> str:
    """An MCU of zeros, in bits: of each block, no difference and the end."""
    tables = {}
    for part in header:
        place = 4
        while part[1] == DHT and place < len(part):
            counts = part[place + 1 : place + 17]
            stop = place + 17 + sum(counts)
            tables[part[place]] = codes_of(counts, part[place + 17 : stop])
            place = stop
    frame = next(part for part in header if part[1] in (SOF0, SOF0 + 1))
    blocks = {frame[10 + 3 * i]: frame[11 + 3 * i] for i in range(frame[9])}
    scan = header[-1]
    bits = ""
    for i in range(scan[4]):
        across, down = divmod(blocks[scan[5 + 2 * i]], 16) if scan[4] > 1 else (1, 1)
        dc, ac = divmod(scan[6 + 2 * i], 16)
        bits += (tables[dc][0] + tables[0x10 + ac][0]) * (across * down)
    return bits
