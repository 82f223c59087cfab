"""Fuzzers of images: members of tars, and raw images of all kinds."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.shard_set.codec import codec_of, plain_jpeg_size
from data_prep.shard_set.decoding import quiet, read_image, size_in_header
from data_prep.shard_set.image_files import BEGIN_BYTES, is_image
from data_prep.shard_set.jpeg_header import DamagedJpegError, jpeg_size
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import Pixels
from data_prep.shard_set.rejection import RejectedImage
from tests.data_prep.raw_data import deep_png, encode, make_pixels
from tests.data_prep.shard_set.fuzz.corpus import make_corpus
from tests.fuzz.harness import Harness, Target, expect
from tests.fuzz.packed_mutation import change_chunk
from tests.fuzz.shard_files import SHARD_SETS

_ENCODINGS: dict[str, Encoding] = {"jpeg": "jpeg", "pixels": "rgb", "planes": "yuv420"}


def _members(name: str, suffix: str) -> list[bytes]:
    with tarfile.open(SHARD_SETS / name / "train-000000.tar") as archive:
        files = [archive.extractfile(each) for each in archive if each.name.endswith(suffix)]
        return [file.read() for file in files if file is not None]


def _check_pixels(pixels: Pixels) -> None:
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    expect(pixels.dtype == np.uint8 and is_rgb, f"{pixels.dtype}{pixels.shape}")


def _image(name: str, _folder: Path) -> Target:
    """Members of tars: a whole image of the stated size, or an error."""
    codec = codec_of(_ENCODINGS[name])

    def read(content: bytes) -> None:
        pixels = codec.decode(content)
        _check_pixels(pixels)
        expect(codec.size_of(content) == pixels.shape[:2], "its size is another one")

    return Target(_members(name, codec.suffix), read)


def _jpeg_header(_folder: Path) -> Target:
    def read(content: bytes) -> None:
        size = plain_jpeg_size(content)
        found = jpeg_size(content)
        expect(size in (None, found), f"{size} and {found}")
        expect(all(0 < side < 1 << 16 for side in found), found)

    return Target([content for content in make_corpus() if _has_size(content)], read)


def _has_size(content: bytes) -> bool:
    try:
        return bool(jpeg_size(content))
    except DamagedJpegError:
        return False


def _raw_image(_folder: Path) -> Target:
    """Raw data of any format: pixels of the size that the header says, or a reason why not."""
    image = Image.fromarray(make_pixels(1, 12, 17))
    exif = Image.Exif()
    exif[274] = 6
    corpus = [
        *(encode(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *(encode(image, kind) for kind in ("GIF", "BMP", "PPM", "TIFF", "ICO")),
        *(encode(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
        *(encode(image.convert(mode), "TIFF") for mode in ("CMYK", "L", "LAB", "YCbCr")),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "TIFF", compression="tiff_adobe_deflate"),
        encode(image, "WEBP", lossless=True),
        encode(image, "JPEG", progressive=True),
        deep_png(np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 999),
    ]

    def read(content: bytes) -> None:
        is_image("x", lambda: content[:BEGIN_BYTES])
        with quiet():
            size = size_in_header(content)
            pixels, _, is_plain = read_image(content)
        _check_pixels(pixels)
        expect(not is_plain or size == pixels.shape[:2], f"{size} and {pixels.shape}")

    return Target(corpus, read)


HARNESSES = (
    Harness(name="pixels", prepare=functools.partial(_image, "pixels"), errors=(ValueError,)),
    Harness(name="planes", prepare=functools.partial(_image, "planes"), errors=(ValueError,)),
    Harness(name="jpeg-header", prepare=_jpeg_header, errors=(DamagedJpegError,)),
    Harness(name="raw-image", prepare=_raw_image, errors=(RejectedImage,), changes=(change_chunk,)),
)
