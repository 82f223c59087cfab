"""Windows of JPEGs by our own decoder: bit-equal to cropping what libjpeg-turbo decodes."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from typing import get_args
from unittest import mock

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data_prep.shard_set.jpeg_header import jpeg_size
from data_prep.shard_set.pixels import Pixels, Window, judge_jpeg
from data_prep.shard_set.recoding import recode_jpeg
from tests.data_prep.odd_jpegs import ADOBE, parts, sampled, segment, with_transform
from tests.data_prep.raw_data import encode
from tests.data_prep.shard_set.decoders import crop, decode_windows, is_answered, needs_decoder
from tests.data_prep.shard_set.jpeg_writer import (
    JFIF,
    PAINTINGS,
    SAMPLINGS,
    Form,
    TableKind,
    paint,
    write_jpeg,
)
from tests.real_data import imagenet_jpegs

pytestmark = needs_decoder

EDGES = (1, 2, 3, 5, 8, 9, 16, 17, 33, 34)
"""Sides of images: one, two and three samples, a block, an MCU, and one more."""


def whole_image(content: bytes) -> Pixels:
    """By the libjpeg-turbo of simplejpeg, and by the system's, which have to agree."""
    whole: Pixels = simplejpeg.decode_jpeg(content)
    by_system = np.empty_like(whole)
    assert judge_jpeg(content, by_system) is None
    assert np.array_equal(whole, by_system)
    return whole


def windows_of_size(whole: Pixels, height: int, width: int) -> tuple[list[Window], Pixels]:
    """Everywhere in the image, and their pixels, N×height×width×3."""
    rows, columns = whole.shape[0] - height + 1, whole.shape[1] - width + 1
    places = [Window(y, x, height, width) for y in range(rows) for x in range(columns)]
    views = np.lib.stride_tricks.sliding_window_view(whole, (height, width, 3))
    return places, views.reshape(-1, height, width, 3)


def assert_same(content: bytes, windows: Iterable[Window]) -> None:
    """Our decoder answers for these windows, as does whoever calls it, and both are right."""
    whole = whole_image(content)
    for window in windows:
        top, left, height, width = window
        expected = whole[top : top + height, left : left + width]
        assert np.array_equal(decode_windows(content, [window])[0], expected)
        assert np.array_equal(crop(content, window), expected)


@st.composite
def windows_in(draw: st.DrawFn, height: int, width: int) -> Window:
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))


INTERVALS = st.integers(0, 12) | st.sampled_from((50, 1000, 65535))


@pytest.mark.parametrize("interval", [0, 2])
@pytest.mark.parametrize(
    ("sampling", "height", "width"),
    [
        *(("4:2:0", 17, 19), ("4:2:2", 9, 33), ("4:4:0", 33, 9), ("4:4:4", 9, 17)),
        *(("4:1:1", 9, 37), ("gray", 17, 9)),
    ],
)
def test_every_window_of_a_small_image(
    sampling: str, height: int, width: int, interval: int
) -> None:
    form = Form(samplings=SAMPLINGS[sampling], interval=interval, quality=90)
    content = write_jpeg(paint("waves", height, width), form).join()
    whole = whole_image(content)
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            windows, expected = windows_of_size(whole, rows, columns)
            assert np.array_equal(decode_windows(content, windows), expected), (rows, columns)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_images_of_any_size(sampling: str) -> None:
    for height in EDGES:
        for width in EDGES:
            form = Form(samplings=SAMPLINGS[sampling], interval=(height + width) % 4)
            content = write_jpeg(paint("noise", height, width), form).join()
            last = Window(height - 1, width - 1, 1, 1)
            assert_same(content, (Window(0, 0, height, width), last))


@given(
    st.data(),
    st.sampled_from(PAINTINGS),
    st.integers(1, 70),
    st.integers(1, 70),
    st.builds(
        Form,
        samplings=st.sampled_from([*SAMPLINGS.values()]),
        quality=st.integers(1, 100),
        interval=INTERVALS,
        tables=st.sampled_from(get_args(TableKind)),
        marks=st.sampled_from([b"", JFIF, segment(0xEE, ADOBE + b"\1"), segment(0xFE, b"word")]),
    ),
)
def test_images_of_any_form(
    data: st.DataObject, painting: str, height: int, width: int, form: Form
) -> None:
    content = write_jpeg(paint(painting, height, width), form).join()
    assert_same(content, [data.draw(windows_in(height, width)) for _ in range(3)])


@pytest.mark.slow
@given(
    st.data(),
    st.sampled_from(PAINTINGS),
    st.integers(1, 300),
    st.integers(1, 300),
    st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from(("4:4:4", "4:2:2", "4:2:0")),
            "optimize": st.booleans(),
        },
        optional={"exif": st.just(b"Exif\0\0II*\0\10\0\0\0\0\0\0\0\0\0"), "comment": st.just("x")},
    ),
    st.sampled_from((None, "restart_marker_blocks", "restart_marker_rows")),
    st.integers(1, 30),
)
def test_images_of_pillow(
    data: st.DataObject,
    painting: str,
    height: int,
    width: int,
    options: dict[str, object],
    restart: str | None,
    interval: int,
) -> None:
    if restart:
        options[restart] = interval
    image = Image.fromarray(paint(painting, height, width))
    image = image.convert(data.draw(st.sampled_from(("RGB", "L"))))
    with mock.patch.object(ImageFile, "MAXBLOCK", 1 << 20):  # Pillow's buffer is small for noise
        content = encode(image, "JPEG", **options)
    assert_same(content, [data.draw(windows_in(height, width)) for _ in range(3)])


@pytest.mark.slow
@given(
    st.data(),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(("444", "422", "420", "440", "411")),
    st.integers(1, 100),
)
def test_images_of_libjpeg_turbo(
    data: st.DataObject, height: int, width: int, sampling: str, quality: int
) -> None:
    pixels = paint("waves", height, width)
    content = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=sampling)
    assert_same(content, [data.draw(windows_in(height, width)) for _ in range(3)])


@pytest.mark.slow
@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_what_few_encoders_write_is_right_whoever_decodes_it(
    data: st.DataObject, height: int, width: int
) -> None:
    pixels = paint("waves", height, width)
    image = Image.fromarray(pixels)
    start, _, *rest = parts(encode(image, "JPEG", subsampling=0))
    samplings = data.draw(
        st.sampled_from(
            (
                ((2, 2), (1, 2), (1, 2)),
                ((2, 2), (2, 1), (2, 1)),
                ((2, 1), (2, 1), (2, 1)),
                ((1, 2), (1, 2), (1, 2)),
                ((1, 1), (2, 1), (1, 2)),
                ((2, 2), (1, 1), (2, 2)),
                ((1, 4), (1, 1), (1, 1)),
                ((3, 1), (1, 1), (1, 1)),
                ((4, 2), (1, 1), (1, 1)),
                ((2, 2),),
                ((4, 1),),
            )
        )
    )
    form = Form(samplings=samplings, interval=data.draw(st.integers(0, 4)))
    contents = (
        encode(image, "JPEG", keep_rgb=True),
        with_transform(encode(image, "JPEG"), 0),
        b"".join((start, *rest)),
        encode(image, "JPEG", progressive=True),
        encode(image, "JPEG", progressive=True, restart_marker_blocks=2),
        sampled(pixels, ((2, 1), (1, 1), (1, 1))),
        write_jpeg(pixels, form).join(),
    )
    for content in contents:
        window = data.draw(windows_in(height, width))
        top, left, rows, columns = window
        whole = np.empty((height, width, 3), np.uint8)
        assert judge_jpeg(content, whole) is None
        assert np.array_equal(whole, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        expected = whole[top : top + rows, left : left + columns]
        assert np.array_equal(crop(content, window), expected)


@pytest.mark.slow
def test_imagenets_images() -> None:
    """All of the sample are baseline, and ours decodes them; some are compared, also re-coded."""
    rng = random.Random(3)
    for number, path in enumerate(imagenet_jpegs()):
        content = path.read_bytes()
        height, width = jpeg_size(content)
        top, left = rng.randrange(height), rng.randrange(width)
        window = Window(
            top, left, rng.randint(1, min(224, height - top)), rng.randint(1, width - left)
        )
        assert is_answered(content, window), path
        if number % 10 == 0:
            assert_same(content, [window])
        if number % 20 == 0:
            recoded = recode_jpeg(content, rng.randint(1, 9))
            assert recoded is not None, path
            assert_same(recoded, [window])
