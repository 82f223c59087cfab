"""The size of a JPEG, which is read without its whole header, is the one that the header has."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from data_prep.shard_set.jpeg_header import DamagedJpegError, jpeg_size, read_jpeg_header
from tests.data_prep.raw_data import make_pixels


def encoded(mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_pixels(height=40, width=50)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


CONTENTS = (
    encoded("RGB"),
    encoded("L", comment=b"\xff\xc0 no frame \xff\xff", restart_marker_blocks=3),
    encoded("CMYK", progressive=True, exif=b"Exif\0\0\xff\xd9", icc_profile=b"\xff\xda" * 40),
)
HEADER_BYTES = 240
"""Their frame headers, and what lies before them."""

OTHER_BYTES = (
    *(b"\0", b"\1", b"\2", b"\7", b"\x28", b"\xc0", b"\xc4", b"\xd9", b"\xda", b"\xff"),
    *(b"\0\0", b"\0\1", b"\0\2", b"\0\x07", b"\0\x0b", b"\xff\xff", b"\xff\xc0", b"\xff\xd9"),
)


def outcome(function: Callable[[bytes], object], content: bytes) -> object:
    try:
        return function(content)
    except DamagedJpegError as error:
        return str(error), error.is_truncated


def size_in_header(content: bytes) -> tuple[int, int]:
    header = read_jpeg_header(content)
    return header.height, header.width


def test_sizes() -> None:
    assert [jpeg_size(content) for content in CONTENTS] == [(40, 50)] * 3


def changed_headers(content: bytes) -> Iterator[bytes]:
    """Cut, shifted, or with other bytes at every place."""
    for at in range(HEADER_BYTES):
        yield content[:at]
        yield content[:at] + content[at + 1 :]
        for other in OTHER_BYTES:
            yield content[:at] + other + content[at:]
            yield content[:at] + other + content[at + len(other) :]
            yield content[:at] + other


@pytest.mark.parametrize("number", range(len(CONTENTS)))
def test_a_changed_header_has_that_size_or_that_fault(number: int) -> None:
    for content in changed_headers(CONTENTS[number]):
        assert outcome(jpeg_size, content) == outcome(size_in_header, content), content.hex()
