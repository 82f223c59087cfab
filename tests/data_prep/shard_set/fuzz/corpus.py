"""What the fuzzer starts from: small JPEGs of all kinds, and damaged ones."""

from __future__ import annotations

from typing import get_args

from PIL import Image

from tests.data_prep.odd_jpegs import (
    ADOBE,
    arithmetic,
    lossless,
    sampled,
    segment,
    with_stray_bytes,
    with_transform,
    without_last_scans,
)
from tests.data_prep.raw_data import encode
from tests.data_prep.shard_set.jpeg_writer import SAMPLINGS, Form, TableKind, paint, write_jpeg

HEIGHT, WIDTH = 26, 45


def make_corpus() -> list[bytes]:
    pixels = paint("photo", HEIGHT, WIDTH)
    image = Image.fromarray(pixels)
    contents = [
        write_jpeg(
            pixels[: HEIGHT - cut, : WIDTH - 3 * cut],
            Form(
                samplings=samplings,
                quality=(95, 60, 20)[interval % 3],
                interval=interval,
                tables=tables,
            ),
        ).join()
        for samplings in SAMPLINGS.values()
        for tables in get_args(TableKind)
        for cut, interval in enumerate((0, 1, 2, 3, 4, 6, 50))
    ]
    wide = paint("photo", 18, 170)  # more than the vectors hold
    contents += [
        write_jpeg(wide, Form(samplings=samplings, interval=interval)).join()
        for samplings in SAMPLINGS.values()
        for interval in (0, 4)
    ]
    for mode in ("RGB", "L", "CMYK"):
        for restart in ({}, {"restart_marker_blocks": 2}):
            for progressive in (False, True):
                options = {"optimize": True, "progressive": progressive, **restart}
                contents.append(encode(image.convert(mode), "JPEG", **options))
    return [
        *contents,
        encode(image, "JPEG", keep_rgb=True),
        encode(image, "JPEG", exif=b"Exif\0\0II*\0\10\0\0\0\0\0\0\0\0\0", comment="word"),
        with_transform(encode(image, "JPEG"), 1),
        with_transform(encode(image, "JPEG"), 0),
        sampled(pixels, ((2, 1), (1, 1), (1, 1))),
        write_jpeg(pixels, Form(samplings=((2, 2), (1, 2), (1, 2)), interval=2)).join(),
        write_jpeg(pixels, Form(samplings=((2, 2),), interval=2)).join(),
        write_jpeg(pixels, Form(marks=segment(0xEE, ADOBE + b"\1"))).join(),
        without_last_scans(encode(image, "JPEG", progressive=True)),
        with_stray_bytes(encode(image, "JPEG"), b"stray", 3).replace(b"\1\0\2", b"\1\xdd\2"),
        lossless(pixels[:, :, 0]),
        arithmetic(),
    ]
