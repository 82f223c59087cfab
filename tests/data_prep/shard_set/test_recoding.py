"""JPEGs with restart markers: the same pixels, marks where they should be, and what is kept."""

from __future__ import annotations

import ctypes
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set import compiled
from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.jpeg_header import jpeg_segments, read_jpeg_header
from data_prep.shard_set.pixels import Pixels
from data_prep.shard_set.recoding import MAX_RESTART, encode_jpeg, recode_jpeg
from tests import machine
from tests.data_prep.odd_jpegs import (
    ADOBE,
    arithmetic,
    lossless,
    parts,
    sampled,
    segment,
    with_scan_end,
    with_stray_bytes,
    with_transform,
    with_version,
    with_wide_table,
    without_last_scans,
)
from tests.data_prep.raw_data import encode, make_pixels
from tests.data_prep.shard_set.fuzz.running import SOURCES
from tests.real_data import imagenet_jpegs

pytestmark = pytest.mark.skipif(
    not is_compiled(), reason="data_prep.shard_set._pixels was not built"
)

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def jpeg(height: int, width: int, subsampling: str, quality: int = 90) -> bytes:
    pixels = make_pixels(height * 1000 + width, height, width)
    gray = np.ascontiguousarray(pixels[:, :, :1])
    content: bytes = simplejpeg.encode_jpeg(
        gray if subsampling == "Gray" else pixels,
        quality=quality,
        colorspace="GRAY" if subsampling == "Gray" else "RGB",
        colorsubsampling=subsampling,
    )
    return content


def pillow_jpeg(**options: object) -> bytes:
    return encode(Image.fromarray(make_pixels()), "JPEG", **options)


def by_pillow(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


def recoded(content: bytes, restart: int) -> bytes:
    found = recode_jpeg(content, restart)
    assert found is not None
    return found


def interval_of(content: bytes) -> int:
    """What its DRI says; 0 if there is none."""
    found = [
        content[start:stop] for marker, start, stop in jpeg_segments(content) if marker == 0xDD
    ]
    return int.from_bytes(found[0]) if found else 0


def marks_of(content: bytes) -> list[int]:
    """The numbers of its restart markers, in their order; the picture has one scan."""
    data = parts(content)[-1]
    found = [match[0][1] for match in re.finditer(rb"\xff[^\0]", data)]
    assert found.pop() == 0xD9
    return [mark - 0xD0 for mark in found]


def mcus_of(content: bytes) -> tuple[int, int]:
    """How many rows of MCUs, and how many in a row, in one scan."""
    header = read_jpeg_header(content)
    factors = header.samplings if len(header.samplings) > 1 else ((1, 1),)
    width, height = (8 * max(sides) for sides in zip(*factors, strict=True))
    return -(-header.height // height), -(-header.width // width)


def expected_interval(restart: int, row: int) -> int:
    """As the docs have it, from all numbers."""
    fit = [n for n in range(1, restart + 1) if row % n == 0 and 2 * n > restart]
    return max(fit, default=restart)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 300),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    quality=st.sampled_from([10, 75, 95, 100]),
    restart=st.sampled_from([0, 1, 2, 3, 4, 5, 8, 100, MAX_RESTART]),
    before=st.sampled_from([0, 3]),
    is_progressive=st.booleans(),
)
def test_a_recoded_jpeg_has_the_same_pixels_and_its_marks_in_place(
    height: int,
    width: int,
    subsampling: str,
    quality: int,
    restart: int,
    before: int,
    is_progressive: bool,
) -> None:
    content = jpeg(height, width, subsampling, quality)
    if before:  # as others write markers
        content = recoded(content, before)
    if is_progressive:
        content = encode(Image.open(io.BytesIO(content)), "JPEG", progressive=True)
    found = recoded(content, restart)
    assert np.array_equal(simplejpeg.decode_jpeg(found), simplejpeg.decode_jpeg(content))
    assert np.array_equal(by_pillow(found), by_pillow(content))
    assert read_jpeg_header(found).kind == 0
    rows, row = mcus_of(content)
    interval = expected_interval(restart, row)
    assert interval_of(found) == interval
    num_marks = (row * rows - 1) // interval if interval else 0
    assert marks_of(found) == [number % 8 for number in range(num_marks)]
    assert recode_jpeg(found, restart) == found
    assert recode_jpeg(found, 0) == recode_jpeg(content, 0)


@pytest.mark.parametrize(
    "samplings",
    [
        [(1, 2), (1, 1), (1, 1)],
        [(4, 1), (1, 1), (1, 1)],
        [(2, 2), (1, 2), (1, 2)],
        [(2, 1), (2, 1), (2, 1)],
        [(1, 1), (2, 2), (1, 1)],
        [(3, 1), (1, 1), (1, 1)],
    ],
)
def test_a_scan_for_each_component_becomes_one(samplings: Sequence[tuple[int, int]]) -> None:
    content = sampled(make_pixels(height=61, width=83), samplings)
    found = recoded(content, 2)
    assert read_jpeg_header(found).samplings == tuple(samplings)
    assert marks_of(found) != []
    assert np.array_equal(by_pillow(found), by_pillow(content))


def test_arithmetic_codes_become_huffman_codes() -> None:
    found = recoded(arithmetic(), 2)
    assert read_jpeg_header(found).is_common
    assert len(marks_of(found)) == 5  # 3 rows of 4 MCUs
    assert np.array_equal(simplejpeg.decode_jpeg(found), simplejpeg.decode_jpeg(arithmetic()))


def segments_of(content: bytes) -> list[tuple[int, bytes]]:
    """Markers that are not the picture's, and what is in them."""
    found = ((marker, content[start:stop]) for marker, start, stop in jpeg_segments(content))
    return [(marker, data) for marker, data in found if marker >= 0xE0]


def test_what_says_how_pixels_are_meant_is_kept_and_all_else_dropped() -> None:
    jfif = b"JFIF\0\x01\x01\x01" + bytes((1, 44, 0, 200))
    kept = [
        (0xE0, jfif + b"\0\0"),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        (0xE2, b"ICC_PROFILE\0\x01\x02" + bytes(60_000)),
        (0xE2, b"ICC_PROFILE\0\x02\x02" + bytes(100)),
        (0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
        (0xFE, b"a comment"),
        (0xFE, b""),
    ]
    dropped = [
        (0xE0, b"JFXX\0\x10" + bytes(9)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        (0xE2, b"MPF\0II*\0"),
        (0xED, b"Photoshop 3.0\0"),
        (0xEF, b"of a camera"),
        (0xEE, b"Adobe"),
        (0xE0, b"JFIF\0\1"),
    ]
    with_thumbnail = [(0xE0, jfif + b"\x02\x01" + bytes(6))]
    start, _, *rest = parts(pillow_jpeg())  # without the JFIF marker of its own
    metadata = (segment(*each) for each in (*with_thumbnail, *dropped, *kept[1:]))
    content = b"".join((start, *metadata, *rest))
    assert segments_of(recoded(content, 4)) == kept


@pytest.mark.parametrize("ids", [b"\1\2\3", b"RGB", b"\0\1\2", b"\1\x22\x23"])
@pytest.mark.parametrize("marks", ["JFIF", "none", "0", "1", "JFIF and 0"])
def test_colours_mean_the_same(ids: bytes, marks: str) -> None:
    start, jfif, *rest = parts(pillow_jpeg(subsampling=0))
    for number, part in enumerate(rest):
        if part[1] == 0xC0:
            first, step = 10, 3
        elif part[1] == 0xDA:
            first, step = 5, 2
        else:
            continue
        changed = bytearray(part)
        changed[first : first + 3 * step : step] = ids
        rest[number] = bytes(changed)
    adobe = segment(0xEE, ADOBE + bytes((int(marks[-1]),))) if marks[-1].isdigit() else b""
    content = b"".join((start, jfif if "JFIF" in marks else b"", adobe, *rest))
    found = recoded(content, 4)
    assert segments_of(found) == segments_of(content)
    for decode in (simplejpeg.decode_jpeg, by_pillow):
        assert np.array_equal(decode(found), decode(content))


PLAIN = pillow_jpeg()
PROGRESSIVE = pillow_jpeg(progressive=True)


@pytest.mark.parametrize(
    "content",
    {
        "nothing": b"",
        "no JPEG": b"no JPEG at all",
        "its header alone": PLAIN[:200],
        "cut": PLAIN[: len(PLAIN) // 2],
        "without an end": PLAIN[:-2],
        "stray bytes": with_stray_bytes(PLAIN, b"\1\2\3", 2),
        "a wrong Se": with_scan_end(PLAIN, 0),
        "a version of JFIF that libjpeg does not know": with_version(PLAIN, 9),
        "a transform of Adobe's that nobody knows": with_transform(PLAIN, 7),
        "a scan is missing": without_last_scans(PROGRESSIVE),
        "most scans are missing": without_last_scans(PROGRESSIVE, 6),
        "lossless": lossless(make_pixels()[:, :, 0]),
        "12 bits a value": PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "16 bits a table entry": with_wide_table(pillow_jpeg(quality=30)),
        "more blocks than an MCU can have": sampled(make_pixels(), [(4, 2), (2, 1), (1, 1)]),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_damaged_odd_or_too_much_for_baseline_is_left(content: tuple[str, bytes]) -> None:
    assert recode_jpeg(content[1], 4) is None


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same code with a libjpeg that can be made to write something else: see spoil.c."""
    if shutil.which("gcc") is None or not Path("/usr/include/jpeglib.h").exists():
        machine.skip("needs gcc and libjpeg-turbo's headers")
    built = tmp_path_factory.mktemp("spoiled") / "spoiled.so"
    names = ("write_coefficients", "finish_compress")
    renamed = (f"-Djpeg_{name}=spoiled_{name}" for name in names)
    recode = built.with_suffix(".o")
    command = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-fPIC")
    subprocess.run((*command, *renamed, "-c", SOURCES / "recode.c", "-o", recode), check=True)
    others = [path for path in SOURCES.glob("*.c") if path.name != "recode.c"]
    sources = (recode, *others, Path(__file__).with_name("spoil.c"))
    subprocess.run((*command, "-shared", *sources, "-ljpeg", "-lm", "-o", built), check=True)
    return ctypes.CDLL(str(built))


@pytest.mark.parametrize("what", ["spoils_coefficient", "spoils_table"])
def test_a_result_that_is_not_the_same_picture_is_not_taken(
    spoiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(compiled, "_library", spoiled)
    assert recode_jpeg(PLAIN, 4) is not None
    ctypes.c_int.in_dll(spoiled, what).value = 1
    assert recode_jpeg(PLAIN, 4) is None
    ctypes.c_int.in_dll(spoiled, what).value = 0


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (37, 301)])
def test_an_encoded_jpeg_is_what_simplejpeg_encodes(size: tuple[int, int]) -> None:
    pixels = make_pixels(5, *size)
    for quality in range(1, 101):
        theirs = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444")
        assert encode_jpeg(pixels, quality, 0) == theirs
        for restart in (1, 4):
            ours = encode_jpeg(pixels, quality, restart)
            assert interval_of(ours) == expected_interval(restart, mcus_of(theirs)[1])
            assert recode_jpeg(ours, restart) == recode_jpeg(theirs, restart)
            assert np.array_equal(simplejpeg.decode_jpeg(ours), simplejpeg.decode_jpeg(theirs))


def test_a_picture_that_no_jpeg_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="the image is 1×65501; expected at most 65500×65500"):
        encode_jpeg(np.zeros((1, 65_501, 3), np.uint8), 95, 4)


def test_rows_that_lie_apart_are_encoded_like_others() -> None:
    pixels = make_pixels()
    assert encode_jpeg(pixels[:, ::2], 95, 4) == encode_jpeg(pixels[:, ::2].copy(), 95, 4)


def test_real_images_are_recoded() -> None:
    contents = [path.read_bytes() for path in imagenet_jpegs()[::50]]
    assert len(contents) == 20
    found = [recoded(content, 4) for content in contents]
    for pair in zip(contents, found, strict=True):
        assert np.array_equal(*map(simplejpeg.decode_jpeg, pair))
    assert sum(map(len, found)) < 1.04 * sum(map(len, contents))
