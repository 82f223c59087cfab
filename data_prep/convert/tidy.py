"""Leaves out of a file what is no part of the picture and keeps strict decoders from reading it."""

from __future__ import annotations

import re
import zlib

from data_prep.shard_set.jpeg_header import (
    APP0,
    APP14,
    JPEG_END,
    JPEG_START,
    START_OF_SCAN,
    jpeg_segments,
    read_jpeg_header,
)

PNG_START = b"\x89PNG\r\n\x1a\n"

_KEPT = {*range(0xC0, 0xD0), 0xDB, 0xDD, APP0, APP14, START_OF_SCAN}
"""Frame, tables, restart interval, scan, and what tells the colour space."""
_HUFFMAN = (0, 1)  # and sequential; of arithmetic codes no decoder tells that they stop early
_SEQUENTIAL = (*_HUFFMAN, 9)
_YCC, _YCCK = 1, 2
_MARKER_AFTER_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # none of those for restarts
_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_MAX_EXIF_BYTES = 1 << 16


def tidy_jpeg(content: bytes) -> bytes:
    """The same picture with a header that follows the standard to the letter.

    Raises `DamagedJpegError` if there is no header to go by.
    """
    header = read_jpeg_header(content)
    num_components, is_sequential = len(header.samplings), header.kind in _SEQUENTIAL
    tidied, segment, stop = JPEG_START, bytearray(), 0
    for marker, start, stop in jpeg_segments(content):
        segment = bytearray(content[start:stop])
        if marker == APP0 and segment.startswith(b"JFIF\0"):
            segment[5:6] = b"\x01"  # the version
        if marker == APP14 and len(segment) > 11 and segment[11] > _YCCK:
            segment[11] = _YCC if num_components == 3 else _YCCK  # what libjpeg takes it for
        if marker == START_OF_SCAN and is_sequential:
            segment[-3:] = bytes((0, 63, 0))
        if marker in _KEPT:
            tidied += bytes((0xFF, marker)) + (len(segment) + 2).to_bytes(2) + segment
    data = content[stop:]
    is_one_scan = segment[:1] == bytes((num_components,))
    if header.kind in _HUFFMAN and is_one_scan:
        after = _MARKER_AFTER_DATA.search(data)
        if after is None:
            data = data.rstrip(b"\xff") + JPEG_END
        elif after[0] == JPEG_END:
            data = data[: after.end()]
    return tidied + data


def tidy_png(content: bytes) -> bytes:
    """The picture alone, without texts and profiles, and with an end."""
    tidied, place = PNG_START, len(PNG_START)
    while place + 8 < len(content):
        num_bytes, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        chunk = content[place : place + 12 + num_bytes]
        place += 12 + num_bytes
        if kind == b"IDAT" and place > len(content):  # perhaps it lacks no more than its checksum
            chunk = _png_chunk(kind, chunk[8 : 8 + num_bytes])
        is_right = int.from_bytes(chunk[-4:]) == zlib.crc32(chunk[4:-4])
        if kind in _KEPT_CHUNKS or (kind == b"eXIf" and is_right and num_bytes < _MAX_EXIF_BYTES):
            tidied += chunk
    return tidied + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return len(content).to_bytes(4) + kind + content + checksum.to_bytes(4)
