"""Windows of JPEGs and of stored pixels, against Pillow and a decoder that takes no short cut."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set import compiled
from data_prep.shard_set import pixels as pixels_module
from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.jpeg_header import jpeg_size
from data_prep.shard_set.pixels import (
    BILINEAR,
    LANCZOS,
    Pixels,
    Window,
    cut_jpegs,
    decode_jpeg,
    scale_middle,
    scale_window,
)
from data_prep.shard_set.scaling import Resampling, scale_pixels
from tests.data_prep.odd_jpegs import sampled
from tests.real_data import imagenet_jpegs

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
OTHER_SAMPLINGS = (
    [(1, 2), (1, 1), (1, 1)],
    [(4, 1), (1, 1), (1, 1)],
    [(2, 2), (1, 2), (1, 2)],
    [(2, 2), (2, 1), (2, 1)],
    [(2, 1), (2, 1), (2, 1)],
    [(1, 2), (1, 2), (1, 2)],
)


def picture(height: int, width: int) -> Pixels:
    """Waves and noise: edges between blocks and between chroma samples."""
    noise = np.random.default_rng(height * 1000 + width).integers(0, 80, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 3), np.cos(y / 5), np.sin((x + y) / 7)], axis=2)
    return np.clip(110 + 70 * waves + noise - 40, 0, 255).astype(np.uint8)


def jpeg(image: Pixels, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scaled(image: Pixels, height: int, width: int, resampling: Resampling = BILINEAR) -> Pixels:
    out = np.empty((height, width, 3), np.uint8)
    scale_pixels(image, out, resampling)  # in Python: see test_scaling
    return out


def cut(content: bytes, window: Window, height: int, width: int) -> Pixels:
    out = np.full((1, height, width, 3), 7, np.uint8)
    failure = cut_jpegs([content], np.array([window]), out)
    if failure is not None:
        raise ValueError(failure[1])
    found: Pixels = out[0]
    return found


def taken(image: Pixels, window: Window) -> Pixels:
    top, left, height, width = window
    return image[top : top + height, left : left + width]


@st.composite
def cases(draw: st.DrawFn) -> tuple[bytes, Window, tuple[int, int]]:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    options = {
        "quality": draw(st.sampled_from([30, 90])),
        "subsampling": draw(st.sampled_from(SUBSAMPLINGS)),
        "progressive": draw(st.booleans()),
    }
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    window = Window(
        top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    )
    image = picture(height, width)
    others = st.sampled_from([None, *OTHER_SAMPLINGS])
    if (samplings := draw(others)) is not None:
        content = sampled(image, samplings)
    else:
        content = jpeg(image[:, :, 0] if draw(st.booleans()) else image, **options)
    return content, window, (draw(st.integers(1, 60)), draw(st.integers(1, 60)))


def test_the_compiled_code_is_there() -> None:
    """Where libjpeg-turbo's headers are, as `make` sees to it."""
    if not Path("/usr/include/jpeglib.h").exists() and not os.environ.get("CI"):
        pytest.skip("needs libjpeg-turbo's headers at build time: Debian's libjpeg62-turbo-dev")
    assert is_compiled()


@given(cases())
def test_a_window_has_the_pixels_of_the_whole_image(
    case: tuple[bytes, Window, tuple[int, int]],
) -> None:
    content, window, _ = case
    whole = simplejpeg.decode_jpeg(content)
    assert np.array_equal(cut(content, window, window.height, window.width), taken(whole, window))


def test_code_that_was_built_from_another_source_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_compiled():
        pytest.skip("data_prep.shard_set._pixels was not built")
    assert compiled._load() is not None
    monkeypatch.setattr(compiled, "_INTERFACE", 1)
    assert compiled._load() is None


@given(cases())
def test_a_scaled_window_is_that_of_the_whole_image(
    case: tuple[bytes, Window, tuple[int, int]],
) -> None:
    content, window, size = case
    whole = simplejpeg.decode_jpeg(content)
    expected = scaled(taken(whole, window), *size)
    assert np.array_equal(cut(content, window, *size), expected)
    for resampling in (BILINEAR, LANCZOS):
        out = np.empty((*size, 3), np.uint8)
        scale_window(whole, window, out, resampling)
        assert np.array_equal(out, scaled(taken(whole, window), *size, resampling))


@pytest.mark.usefixtures("way")
def test_both_ways_agree() -> None:
    rng = random.Random(0)
    for _ in range(50):
        height, width = rng.randint(60, 200), rng.randint(60, 200)
        content = jpeg(picture(height, width), quality=90)
        window = Window(
            rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 51), rng.randint(1, 51)
        )
        whole = np.asarray(Image.open(io.BytesIO(content)))
        found = cut(content, window, 224, 100)
        assert np.array_equal(found, scaled(taken(whole, window), 224, 100))


def test_real_images_are_cut_as_whole_ones_are() -> None:
    rng = random.Random(1)
    paths = imagenet_jpegs()[::20]
    assert len(paths) == 50
    for path in paths:
        content = path.read_bytes()
        whole = simplejpeg.decode_jpeg(content, strict=False)
        height, width, _ = whole.shape
        top, left = rng.randint(0, height // 2), rng.randint(0, width // 2)
        window = Window(top, left, rng.randint(1, height - top), rng.randint(1, width - left))
        as_is = cut(content, window, window.height, window.width)
        assert np.array_equal(as_is, taken(whole, window)), path.name
        assert np.array_equal(cut(content, window, 224, 224), scaled(as_is, 224, 224)), path.name


@pytest.mark.usefixtures("way")
def test_a_subsampling_without_a_name() -> None:
    """4:4:1 has as many blocks a unit as 4:2:0: here only the header tells them apart."""
    content = bytearray(jpeg(picture(64, 64), subsampling="4:2:0"))
    place = content.index(b"\xff\xc0") + 11
    assert content[place] == 0x22
    content[place] = 0x14
    assert jpeg_size(bytes(content)) == (64, 64)
    whole = np.asarray(Image.open(io.BytesIO(content)))
    window = Window(9, 30, 40, 17)
    assert np.array_equal(cut(bytes(content), window, 40, 17), taken(whole, window))
    with pytest.raises(ValueError, match=r"truncated|Premature|premature"):
        decode_jpeg(bytes(content[:-100]))


@pytest.mark.usefixtures("way")
def test_a_damaged_jpeg_is_refused() -> None:
    content = jpeg(picture(64, 64), quality=90)
    assert jpeg_size(content) == (64, 64)
    whole = Window(0, 0, 64, 64)
    for damaged, what in (
        (b"", "^(?!the window)"),
        (b"no JPEG at all", "^(?!the window)"),
        (content[:300], "^(?!the window)"),
        (content[: len(content) // 2], "(?i)premature end"),
    ):
        with pytest.raises(ValueError, match=what):
            cut(damaged, whole, 64, 64)
        with pytest.raises(ValueError, match=what):
            decode_jpeg(damaged)
    with pytest.raises(ValueError, match=r"."):
        jpeg_size(b"no JPEG at all")


@pytest.mark.usefixtures("way")
def test_the_first_damaged_one_of_many_is_reported() -> None:
    image = picture(40, 50)
    good = jpeg(image, quality=90)
    window = np.array([[0, 0, 40, 50]] * 4)
    out = np.zeros((4, 40, 50, 3), np.uint8)
    failure = cut_jpegs([good, good[:500], good, b""], window, out)
    assert failure is not None
    assert failure[0] == 1
    assert failure[1]
    assert np.array_equal(out[0], np.asarray(Image.open(io.BytesIO(good))))
    assert cut_jpegs([good] * 4, window, out) is None
    assert np.array_equal(out[3], out[0])
    assert cut_jpegs([], window[:0], out[:0]) is None


def test_rows_below_the_window_are_not_decoded() -> None:
    """So damage there is not noticed: checksums are for that."""
    content = jpeg(picture(200, 64), quality=90)
    half = content[: len(content) // 2]
    window = Window(0, 0, 16, 64)
    assert np.array_equal(cut(half, window, 16, 64), cut(content, window, 16, 64))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "window",
    [
        *((0, 0, 65, 64), (1, 0, 64, 64), (0, 1, 64, 64), (-1, 0, 4, 4), (0, -1, 4, 4)),
        *((0, 0, 0, 4), (1, 0, 2**31 - 1, 4), (0, 1, 4, 2**31 - 1)),
    ],
)
def test_a_window_beyond_the_image_is_refused(window: tuple[int, int, int, int]) -> None:
    image = picture(64, 64)
    with pytest.raises(ValueError, match="window"):
        cut(jpeg(image), Window(*window), 32, 32)
    with pytest.raises(ValueError, match="window"):
        scale_window(image, Window(*window), np.empty((32, 32, 3), np.uint8))


@given(*[st.integers(1, 40)] * 4)
def test_the_middle_is_as_large_as_its_shape_allows(
    height: int, width: int, rows: int, columns: int
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    with mock.patch.object(pixels_module, "scale_window") as scale:
        scale_middle(image, (rows, columns), LANCZOS)
    window = scale.call_args.args[1]
    assert window.height == height or window.width == width
    is_thin = 1 in (window.height, window.width)  # no side is zero, whatever the shape
    assert is_thin or abs(window.height * columns - window.width * rows) < max(rows, columns)
    assert 0 <= height - window.height - 2 * window.top <= 1
    assert 0 <= width - window.width - 2 * window.left <= 1
