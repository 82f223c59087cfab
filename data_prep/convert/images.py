"""One image, from whatever it is to what a shard holds.

The rules, in the words of `docs/data-format.md`: an honest JPEG that has the wanted size goes in
byte for byte; what else has all its pixels is converted and counted by its first reason in
`REWRITTEN`; what has not is rejected and counted by its reason in `REJECTED` (`decoding`).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import simplejpeg
from PIL import Image

from data_prep.convert.decoding import RewriteReason, read_image
from data_prep.shard_set.jpeg_header import JPEG_START
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import LANCZOS, Pixels, Window, decode_jpeg, scale_window
from data_prep.sources.source import RawImage

JPEG_QUALITY = 95
"""Of images that must be encoded anew, unless another is asked for; 4:4:4, no colour is lost."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The content of an image's tar member."""

    content: bytes
    pixels: Pixels
    """What a reader of the shard will see."""
    rewritten: RewriteReason | None
    """Why the image is not what the source has, or None."""


def store(
    raw: RawImage,
    encoding: Encoding,
    size: int | None,
    jpeg_quality: int | None = JPEG_QUALITY,
) -> StoredImage:
    """Make the member's content: a JPEG, or the .npy of the pixels.

    With `size` the middle square is scaled to size×size; without it the image keeps its size.
    `jpeg_quality` (1-100; None with encoding rgb) is that of images that are encoded anew.
    Raises `RejectedImage`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange metadata, which say nothing of the picture
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _store(raw, encoding, size, jpeg_quality)


def _store(
    raw: RawImage, encoding: Encoding, size: int | None, jpeg_quality: int | None
) -> StoredImage:
    if not isinstance(raw, bytes):
        return _encode(raw, None, encoding, size, jpeg_quality)
    pixels, flaw, is_honest_jpeg = read_image(raw)
    match encoding:
        case "jpeg":
            if is_honest_jpeg and (size is None or pixels.shape[:2] == (size, size)):
                return StoredImage(raw, pixels, None)
            if not raw.startswith(JPEG_START):
                flaw = flaw or "not_jpeg"
        case "rgb":
            pass
        case unknown:
            assert_never(unknown)
    return _encode(pixels, flaw, encoding, size, jpeg_quality)


def encode_npy(pixels: Pixels) -> bytes:
    """The .npy file of an image; its pixels are its last bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return buffer.getvalue()


def _encode(
    pixels: Pixels,
    flaw: RewriteReason | None,
    encoding: Encoding,
    size: int | None,
    jpeg_quality: int | None,
) -> StoredImage:
    if size is not None and pixels.shape[:2] != (size, size):
        pixels = _crop_and_scale(pixels, size)
        flaw = flaw or "resized"
    match encoding:
        case "rgb":
            return StoredImage(encode_npy(pixels), pixels, flaw)
        case "jpeg":
            content = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorsubsampling="444")
            return StoredImage(content, decode_jpeg(content), flaw)
        case unknown:
            assert_never(unknown)


def _crop_and_scale(image: Pixels, size: int) -> Pixels:
    """Scale the middle square to size×size: the same as short side to `size`, then centre crop."""
    height, width, _ = image.shape
    side = min(height, width)
    scaled = np.empty((size, size, 3), np.uint8)
    window = Window((height - side) // 2, (width - side) // 2, side, side)
    scale_window(image, window, scaled, LANCZOS)
    return scaled
