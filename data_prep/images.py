"""One image, from whatever it is to what a shard holds.

The rules, in the words of `docs/data-format.md`: an honest JPEG that has the wanted size goes in
byte for byte; what else decodes is converted and counted by its first reason in `REWRITTEN`;
what does not decode whole is rejected and counted by its reason in `REJECTED`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from data_prep.manifest import Encoding
from data_prep.pixels import LANCZOS, Pixels, Window, scale_window
from data_prep.sources import RawImage

JPEG_QUALITY = 95
"""Of images that must be encoded anew, unless another is asked for; 4:4:4, no colour is lost."""

RewriteReason = Literal[
    "cmyk",  # CMYK or YCCK: converted to RGB
    "rotated",  # the EXIF orientation asked for it: turned upright
    "sixteen_bit",  # the upper 8 of its 16 bits are kept
    "transparent",  # laid over white
    "palette",  # colours looked up
    "grayscale",  # three equal channels; a grayscale JPEG stays as it is under encoding jpeg
    "not_jpeg",  # another format, or pixels, encoded as JPEG
    "repaired",  # a JPEG with stray bytes in it, which strict readers refuse
    "resized",  # to --size
]
REWRITTEN: tuple[RewriteReason, ...] = get_args(RewriteReason)

RejectReason = Literal[
    "empty",  # no bytes
    "not_an_image",  # no known image format
    "truncated",  # its end is missing
    "undecodable",  # known format, but damaged or of an unknown kind
    "too_large",  # more pixels than Pillow deems safe (a decompression bomb)
]
REJECTED: tuple[RejectReason, ...] = get_args(RejectReason)

_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a camera's JPEG with further pictures after its end
_TURNS: Mapping[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""


class RejectedImage(Exception):
    """An image that no rule makes usable."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason)
        self.reason: RejectReason = reason


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
    header = _open(raw)
    flaw = _find_flaw(header)
    if header.format in _JPEG_FORMATS and flaw != "cmyk":
        pixels, is_sound = _decode_tolerantly(raw)
        fits = size is None or header.size == (size, size)
        if encoding == "jpeg" and is_sound and flaw in (None, "grayscale") and fits:
            return StoredImage(raw, pixels, None)
        flaw = flaw or (None if is_sound else "repaired")
    else:
        pixels = np.asarray(_to_rgb(raw, header))
        flaw = flaw or ("not_jpeg" if encoding == "jpeg" else None)
    if (turn := _turn(header)) is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
    return _encode(pixels, flaw, encoding, size, jpeg_quality)


def decode_jpeg(content: bytes) -> Pixels:
    """Decode as the readers of shards do; raises `ValueError` at the slightest damage."""
    pixels: Pixels = simplejpeg.decode_jpeg(content)
    return pixels


def encode_npy(pixels: Pixels) -> bytes:
    """The .npy file of an image; its pixels are its last bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return buffer.getvalue()


def _open(raw: bytes) -> ImageFile.ImageFile:
    """Read an image's header."""
    if not raw:
        raise RejectedImage("empty")
    try:
        return Image.open(io.BytesIO(raw))
    except UnidentifiedImageError:
        raise RejectedImage("not_an_image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RejectedImage("too_large") from None
    except Exception as error:  # Pillow's format readers raise anything
        raise _rejection(error) from None


def _find_flaw(image: ImageFile.ImageFile) -> RewriteReason | None:
    """What a reader that expects plain RGB would get wrong, as far as the header tells."""
    if image.mode == "CMYK":
        return "cmyk"
    if _turn(image) is not None:
        return "rotated"
    if image.mode.startswith("I;16") or any(";16" in str(tile) for tile in image.tile):
        return "sixteen_bit"
    if image.mode in ("I", "F"):  # what its values mean is anyone's guess
        raise RejectedImage("undecodable")
    if image.has_transparency_data:
        return "transparent"
    if image.mode == "P":
        return "palette"
    return "grayscale" if image.mode in ("1", "L") else None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts the image upright, if its EXIF orientation says that it is not."""
    with contextlib.suppress(Exception):  # of damaged metadata
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return None


def _decode_tolerantly(content: bytes) -> tuple[Pixels, bool]:
    """Decode an RGB or grayscale JPEG; also tells whether there was nothing at all to complain of.

    Bytes too many, which old cameras leave, harm nothing; any other complaint means lost pixels.
    """
    try:
        return decode_jpeg(content), True
    except ValueError as error:
        complaint = error
    try:
        if "extraneous bytes" in str(complaint):
            return simplejpeg.decode_jpeg(content, strict=False), False
    except ValueError as error:  # where bytes too many hide a part of the header
        complaint = error
    raise _rejection(complaint)


def _to_rgb(raw: bytes, image: Image.Image) -> Image.Image:
    """Decode the whole image."""
    try:
        Image.open(io.BytesIO(raw)).verify()  # checksums, which decoding leaves aside
        image.load()
        if image.mode.startswith("I"):  # convert() would clip at 255 what goes to 65535
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything
        raise _rejection(error) from None


def _rejection(error: Exception) -> RejectedImage:
    """By what Pillow and libjpeg-turbo say of an image that lacks its end."""
    text = str(error).lower()
    return RejectedImage(
        "truncated" if "truncated" in text or "premature" in text else "undecodable"
    )


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
    if encoding == "rgb":
        return StoredImage(encode_npy(pixels), pixels, flaw)
    content = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorsubsampling="444")
    return StoredImage(content, decode_jpeg(content), flaw)


def _crop_and_scale(image: Pixels, size: int) -> Pixels:
    """Scale the middle square to size×size: the same as short side to `size`, then centre crop."""
    height, width, _ = image.shape
    side = min(height, width)
    scaled = np.empty((size, size, 3), np.uint8)
    window = Window((height - side) // 2, (width - side) // 2, side, side)
    scale_window(image, window, scaled, LANCZOS)
    return scaled
