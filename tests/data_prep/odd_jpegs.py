"""JPEGs that encoders do not write for everyone: odd, unusual or damaged, out of honest ones."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_prep.shard_set.pixels import Pixels
from tests.data_prep.raw_data import encode

ADOBE = b"Adobe\0\x64\0\0\0\0"


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


def parts(content: bytes) -> list[bytes]:
    """The start mark, each segment of the header, and the data behind the first scan's."""
    found, place = [content[:2]], 2
    while found[-1][1] != 0xDA:
        stop = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        found.append(content[place:stop])
        place = stop
    return [*found, content[place:]]


def with_scan_end(content: bytes, last: int) -> bytes:
    """With another Se in the header of the first scan; phones write 0, where 63 is right."""
    place = len(content) - len(parts(content)[-1]) - 2
    return content[:place] + bytes((last,)) + content[place + 1 :]


def with_stray_bytes(content: bytes, stray: bytes, before: int) -> bytes:
    """With bytes that belong to nothing in front of a part of the header."""
    found = parts(content)
    return b"".join((*found[:before], stray, *found[before:]))


def with_version(content: bytes, major: int) -> bytes:
    return content.replace(b"JFIF\0\x01", b"JFIF\0" + bytes((major,)), 1)


def with_transform(content: bytes, transform: int) -> bytes:
    """With a number of Adobe's for how colours are coded, in place of the JFIF mark."""
    start, _, *rest = parts(content)
    return b"".join((start, segment(0xEE, ADOBE + bytes((transform,))), *rest))


def components(pixels: Pixels, samplings: Sequence[tuple[int, int]]) -> list[bytes]:
    """Grayscale JPEGs of Y, Cb and Cr with those horizontal and vertical sampling factors."""
    image = Image.fromarray(pixels)
    across, down = (max(factors) for factors in zip(*samplings, strict=True))
    sizes = [(-(-image.width * h // across), -(-image.height * v // down)) for h, v in samplings]
    return [
        encode(plane.resize(size, Image.Resampling.BOX), "JPEG", quality=95)
        for plane, size in zip(image.convert("YCbCr").split(), sizes, strict=True)
    ]


def with_wide_table(content: bytes) -> bytes:
    """With a quantization table of 16 bits a number, the first of them above 255."""
    start, jfif, table, *rest = parts(content)
    wide = b"".join(bytes((k == 0, value)) for k, value in enumerate(table[5:69]))
    changed = b"".join((start, jfif, segment(0xDB, b"\x10" + wide), table[69:], *rest))
    return changed.replace(b"\xff\xc0\0\x11", b"\xff\xc1\0\x11")


def sampled(pixels: Pixels, samplings: Sequence[tuple[int, int]]) -> bytes:
    """YCbCr of those `components`, each in a scan of its own."""
    frame, scans = b"", b""
    planes = components(pixels, samplings)
    for number, (plane, (h, v)) in enumerate(zip(planes, samplings, strict=True), 1):
        _, _, quantization, _, *tables, scan, data = parts(plane)
        frame += bytes((number, 16 * h + v, 0))
        named = scan[:5] + bytes((number,)) + scan[6:]
        scans += b"".join((quantization, *tables, named, data.removesuffix(b"\xff\xd9")))
    size_and_count = pixels.shape[0].to_bytes(2) + pixels.shape[1].to_bytes(2) + b"\x03"
    return b"\xff\xd8" + segment(0xC0, b"\x08" + size_and_count + frame) + scans + b"\xff\xd9"


def lossless(gray: Pixels) -> bytes:
    """SOF3 of uint8 H×W: each difference to the left neighbour as its size in bits, and itself."""
    values = gray.astype(int)
    before = np.hstack((np.vstack(([[128]], values[:-1, :1])), values[:, :-1]))
    bits = ""
    for difference in (values - before).ravel():
        size = int(abs(difference)).bit_length()
        bits += f"{size:04b}"  # all 9 codes have 4 bits
        if size:
            bits += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    size = values.shape[0].to_bytes(2) + values.shape[1].to_bytes(2)
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xC3, b"\x08" + size + b"\x01\x01\x11\0"),
            segment(0xC4, b"\0" + bytes((0, 0, 0, 9, *[0] * 12)) + bytes(range(9))),
            segment(0xDA, b"\x01\x01\0\x01\0\0"),
            data,
            b"\xff\xd9",
        )
    )


def arithmetic() -> bytes:
    """`make_pixels()` by cjpeg -arithmetic -quality 25: nothing in Python writes such a file."""
    return base64.b85decode(
        "|JeWF01!$>Nk#wx0RR9200961|JwjV03a3^92gWJ92y)XA|NI(P&6<sEHGk5N;*(<W_oyXW^itRkhq+Hh^~rma"
        "G=_vuD-<1(9V3C;_~3g@VLs(#{b&@LjfWrBrqy4UNkgb#)NQ$#>U3R#>U3R#>U3R#>U3R#>U3R#>U3R#>U3R#>"
        "U3R#>U3R#>U3R#>U3R#>U3R#>W5201*fPC;&VI0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfUDoP"
        "rvN$jGR7Z>liQqoh?rkNDHDD~-E@n}k+N>=6l*4F(X8MH{?Y(LHzmxsB;9bqd}_*C7n5a@&JgOIC?FL8RC*A`="
        "?KK5_tO(}K@602o|kgZdd+sVHr=t%P}8=w8aq0AmUZP6vnEl|>Ss->3#qBq;Ogg-wEPqK@H8w<Su0E@4vQbSrC"
        "BGvJ$I%<X+&*?1LmlMj-K4m`p5A;i)wJkDl!zJDA<Vq_409`yW=>OR"
    )


def without_last_scans(content: bytes, count: int = 1) -> bytes:
    """A progressive JPEG without its last `count` scans, but with a proper end."""
    starts = [match.start() for match in re.finditer(b"\xff\xda", content)]
    return content[: starts[-count]] + b"\xff\xd9"
