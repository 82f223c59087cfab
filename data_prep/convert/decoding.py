"""Decodes raw images of all kinds to upright RGB, or says why not.

What was changed on the way is told by its first reason in `REWRITTEN`, what cannot be used by its
reason in `REJECTED`; `docs/data-format.md` has both tables.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Literal, assert_never, get_args

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from data_prep.convert.jpegs import read_jpeg
from data_prep.convert.tidy import PNG_START, tidy_png
from data_prep.shard_set.jpeg_header import (
    APP1,
    JPEG_START,
    PICTURE,
    DamagedJpegError,
    jpeg_segments,
    read_jpeg_header,
)
from data_prep.shard_set.pixels import Pixels

RewriteReason = Literal[
    "cmyk",  # CMYK or YCCK: converted to RGB
    "rotated",  # the EXIF orientation asked for it: turned upright
    "sixteen_bit",  # the upper 8 of its 16 bits are kept
    "transparent",  # laid over white
    "palette",  # colours looked up
    "grayscale",  # three equal channels; a grayscale JPEG stays as it is under encoding jpeg
    "not_jpeg",  # another format, or pixels, encoded as JPEG
    "repaired",  # a JPEG with all its pixels that not every reader takes
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


_IMAGE_STARTS = (PNG_START, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""Of PNG, GIF and TIFF."""


class RejectedImage(Exception):
    """An image that no rule makes usable."""

    def __init__(self, reason: RejectReason, what: str) -> None:
        super().__init__(f"{reason}: {what}; {_remedy(reason)}")
        self.reason: RejectReason = reason


def _remedy(reason: RejectReason) -> str:
    match reason:
        case "empty" | "truncated":
            return "copy it again from its source"
        case "not_an_image":
            return "remove it, or convert it to JPEG or PNG"
        case "undecodable":
            return "copy it again from its source, or convert it to an 8-bit RGB JPEG or PNG"
        case "too_large":
            return "scale it down"
        case _:
            assert_never(reason)


def read_image(raw: bytes) -> tuple[Pixels, RewriteReason | None, bool]:
    """Decode to uint8 H×W×3.

    Also tells what was changed, and whether it is a JPEG that every reader of shards gets the same
    pixels of. Raises `RejectedImage`.
    """
    if raw.startswith(JPEG_START):
        return _read_jpeg(raw)
    try:
        pixels, flaw = _read_with_pillow(raw)
    except RejectedImage:
        if not raw.startswith(PNG_START):
            raise
        pixels, flaw = _read_with_pillow(tidy_png(raw))
    return pixels, flaw, False


def _read_jpeg(raw: bytes) -> tuple[Pixels, RewriteReason | None, bool]:
    """Decode a JPEG; also tells what is changed, and whether it can go in byte for byte."""
    try:
        header = read_jpeg_header(raw)
        _check_size(header.width, header.height)
        pixels, complaint = read_jpeg(raw, header)
    except DamagedJpegError as error:
        reason: RejectReason = "truncated" if error.is_truncated else "undecodable"
        raise RejectedImage(reason, str(error)) from None
    image = None if (is_bare := _has_picture_alone(raw)) else _try_to_open(raw)
    if not is_bare and image is None:
        complaint = complaint or "not every decoder opens it"
        image = _try_to_open(_metadata_alone(raw))
    turn = None if image is None else _find_turn(image)
    flaw: RewriteReason | None = None
    if len(header.samplings) == 4:
        flaw = "cmyk"
    elif turn is not None:
        flaw = "rotated"
    elif len(header.samplings) == 1:
        flaw = "grayscale"
    elif complaint is not None:
        flaw = "repaired"
    is_honest = complaint is None and flaw in (None, "grayscale")
    return _turned(pixels, turn), flaw, is_honest


def _has_picture_alone(raw: bytes) -> bool:
    """Whether there is nothing in the header of a JPEG that Pillow could tell of."""
    place = len(JPEG_START)
    for marker, start, stop in jpeg_segments(raw):
        if marker not in PICTURE or start != place + 4:
            return False
        place = stop
    return True


def _try_to_open(raw: bytes) -> Image.Image | None:
    with contextlib.suppress(Exception):  # Pillow's format readers raise anything
        return Image.open(io.BytesIO(raw))
    return None


def _metadata_alone(raw: bytes) -> bytes:
    """A JPEG of one pixel with the metadata of one that Pillow does not open."""
    segments = [
        b"\xff\xe1" + raw[start - 2 : stop]
        for marker, start, stop in jpeg_segments(raw)
        if marker == APP1
    ]
    dot: bytes = simplejpeg.encode_jpeg(np.zeros((1, 1, 3), np.uint8))
    return JPEG_START + b"".join(segments) + dot[len(JPEG_START) :]


def _read_with_pillow(raw: bytes) -> tuple[Pixels, RewriteReason | None]:
    image = _open(raw)
    is_deep = _is_deep(image)  # loading an image leaves nothing to tell it by
    turn = _find_turn(image)
    flaw = _find_flaw(image, turn, is_deep=is_deep)
    return _turned(np.asarray(_to_rgb(raw, image)), turn), flaw


def _open(raw: bytes) -> ImageFile.ImageFile:
    """Read an image's header."""
    if not raw:
        raise RejectedImage("empty", "it has no bytes")
    try:
        return Image.open(io.BytesIO(raw))
    except UnidentifiedImageError:
        if _names_its_format(raw):
            what = f"it begins with {raw[:4]!r}, and its header is damaged"
            raise RejectedImage("undecodable", what) from None
        what = f"it begins with {raw[:16]!r}, which Pillow takes for no image"
        raise RejectedImage("not_an_image", what) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RejectedImage("too_large", str(error)) from None
    except Exception as error:  # Pillow's format readers raise anything
        raise _rejection(error) from None


def _names_its_format(raw: bytes) -> bool:
    """Whether it begins as only images do, of the formats that are most common beside JPEG."""
    return raw.startswith(_IMAGE_STARTS) or (raw[:4], raw[8:12]) == (b"RIFF", b"WEBP")


def _check_size(width: int, height: int) -> None:
    """Refuse what Pillow, too, takes for a decompression bomb."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise RejectedImage("too_large", f"{width}×{height} pixels; expected at most {most:,}")


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether it has 16 bits a value, of which Pillow may keep 8 without a word."""
    if image.mode.startswith("I;16"):
        return True
    arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    largest = [some[-1] for some in arguments if image.format == "PPM"]
    return any(";16" in str(some[0]) for some in arguments) or any(
        isinstance(value, int) and value > 255 for value in largest
    )


def _find_flaw(
    image: ImageFile.ImageFile, turn: Image.Transpose | None, *, is_deep: bool
) -> RewriteReason | None:
    """What a reader that expects plain RGB would get wrong, as far as the header tells."""
    if image.mode == "CMYK":
        return "cmyk"
    if turn is not None:
        return "rotated"
    if is_deep:
        return "sixteen_bit"
    if image.mode in ("I", "F"):
        what = f"{image.format} of mode {image.mode}: what its values mean is unknown"
        raise RejectedImage("undecodable", what)
    if image.has_transparency_data:
        return "transparent"
    if image.mode == "P":
        return "palette"
    return "grayscale" if image.mode in ("1", "L") else None


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    """What puts the image upright, if its EXIF orientation says that it is not."""
    with contextlib.suppress(Exception):  # of damaged metadata
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return None


def _turned(pixels: Pixels, turn: Image.Transpose | None) -> Pixels:
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


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
    """By what Pillow says of an image that lacks its end."""
    what = str(error) or type(error).__name__
    return RejectedImage("truncated" if "truncated" in what.lower() else "undecodable", what)
