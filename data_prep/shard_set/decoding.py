"""Decodes raw images of all kinds to upright RGB, or says why not.

A changed image is counted by the first `RewriteReason` that applies, one that cannot be used by its
`RejectReason`. Only this module and `jpegs` need Pillow to be there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from data_prep.shard_set.jpeg_header import JPEG_START, DamagedJpegError, read_jpeg_header
from data_prep.shard_set.jpegs import has_picture_alone, read_exif, read_jpeg
from data_prep.shard_set.pixels import Pixels
from data_prep.shard_set.rejection import RejectedImage, RejectReason, RewriteReason

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT")
_IMAGE_STARTS = (_PNG_START, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""Of PNG, GIF and TIFF."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of strange metadata; a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(raw: bytes) -> tuple[Pixels, RewriteReason | None, bool]:
    """Decode to uint8 H×W×3; raises `RejectedImage`.

    Also returns what was changed, and whether it is a JPEG that every decoder reads alike.
    """
    if raw.startswith(JPEG_START):
        return _read_jpeg(raw)
    try:
        pixels, flaw = _read_with_pillow(raw)
    except RejectedImage:
        if not raw.startswith(_PNG_START):
            raise
        pixels, flaw = _read_with_pillow(_png_alone(raw))
    return pixels, flaw, False


def _png_alone(raw: bytes) -> bytes:
    """A PNG without texts and profiles, which Pillow may find too large, and with an end."""
    alone, place = _PNG_START, len(_PNG_START)
    while place < len(raw):
        stop = place + 12 + int.from_bytes(raw[place : place + 4])
        if raw[place + 4 : place + 8] in _PNG_PICTURE:
            alone += raw[place:stop]
        place = stop
    return alone + _PNG_END


def _read_jpeg(raw: bytes) -> tuple[Pixels, RewriteReason | None, bool]:
    """As `read_image`, of a JPEG."""
    try:
        header = read_jpeg_header(raw)
        most = Image.MAX_IMAGE_PIXELS  # as Pillow, which takes more for a decompression bomb
        if most is not None and header.width * header.height > most:
            what = f"{header.width}×{header.height} pixels; expected at most {most:,}"
            raise RejectedImage("too_large", what)
        pixels, complaint = read_jpeg(raw, header)
    except DamagedJpegError as error:
        reason: RejectReason = "truncated" if error.is_truncated else "undecodable"
        raise RejectedImage(reason, str(error)) from None
    orientation = 1
    if not has_picture_alone(raw):
        try:
            orientation = find_orientation(Image.open(io.BytesIO(raw)).getexif)
        except Exception:  # Pillow's format readers raise anything
            complaint = complaint or "not every decoder opens it"
            orientation = find_orientation(functools.partial(read_exif, raw))
    flaw: RewriteReason | None = None
    if len(header.samplings) == 4:
        flaw = "cmyk"
    elif orientation != 1:
        flaw = "rotated"
    elif len(header.samplings) == 1:
        flaw = "grayscale"
    elif complaint is not None:
        flaw = "repaired"
    is_honest = complaint is None and flaw in (None, "grayscale")
    return _upright(pixels, orientation), flaw, is_honest


def _read_with_pillow(raw: bytes) -> tuple[Pixels, RewriteReason | None]:
    try:
        image = Image.open(io.BytesIO(raw))
        is_deep = _is_deep(image)  # which a loaded image no longer says
        orientation = find_orientation(image.getexif)
        flaw = _find_flaw(image, orientation, is_deep=is_deep)
        Image.open(io.BytesIO(raw)).verify()  # checksums, which decoding leaves aside
        return _upright(np.asarray(_to_rgb(image)), orientation), flaw
    except (MemoryError, RejectedImage):
        raise
    except Exception as error:  # Pillow raises anything
        raise _rejection(raw, error) from None


def pixels_of(image: Image.Image) -> Pixels:
    """An image that Pillow has opened, as uint8 H×W×3; raises `RejectedImage`.

    The rules are those of `read_image`. Pillow says of no loaded image that it had 16 bits a value,
    but of gray ones.
    """
    try:
        orientation = find_orientation(image.getexif)
        _find_flaw(image, orientation, is_deep=image.mode.startswith("I;16"))
        return _upright(np.asarray(_to_rgb(image)), orientation)
    except (MemoryError, RejectedImage):
        raise
    except Exception as error:  # Pillow raises anything
        what = str(error) or type(error).__name__
        raise RejectedImage("undecodable", what) from None


def _rejection(raw: bytes, error: Exception) -> RejectedImage:
    """By what Pillow says of an image."""
    what = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return RejectedImage("too_large", what)
    if not isinstance(error, UnidentifiedImageError):
        return RejectedImage("truncated" if "truncated" in what.lower() else "undecodable", what)
    if not raw:
        return RejectedImage("empty", "it has no bytes")
    if raw.startswith(_IMAGE_STARTS) or (raw[:4], raw[8:12]) == (b"RIFF", b"WEBP"):
        what = f"it begins with {raw[:4]!r}, and its header is damaged"
        return RejectedImage("undecodable", what)
    what = f"it begins with {raw[:16]!r}, which Pillow takes for no image"
    return RejectedImage("not_an_image", what)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether it has 16 bits a value, of which Pillow may silently keep 8."""
    if image.mode.startswith("I;16"):
        return True
    arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    largest = [some[-1] for some in arguments if image.format == "PPM"]
    return any(";16" in str(some[0]) for some in arguments) or any(
        isinstance(value, int) and value > 255 for value in largest
    )


def _find_flaw(image: Image.Image, orientation: int, *, is_deep: bool) -> RewriteReason | None:
    """What a decoder that expects plain RGB would get wrong, as far as the header says."""
    if image.mode == "CMYK":
        return "cmyk"
    if orientation != 1:
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


def find_orientation(read: Callable[[], Image.Exif]) -> int:
    """The EXIF orientation, 1-8; 1 if it makes no sense."""
    with contextlib.suppress(Exception):  # of damaged metadata
        orientation = int(read()[ExifTags.Base.Orientation])
        return orientation if 1 <= orientation <= 8 else 1
    return 1


def size_in_header(raw: bytes) -> tuple[int, int]:
    """Height and width of the upright image, without decoding it; zeros if they are not known."""
    with contextlib.suppress(Exception):  # Pillow raises anything
        image = Image.open(io.BytesIO(raw))
        # Without one of these marks there is no EXIF, which Pillow decodes a whole PNG to find.
        is_marked = any(mark in raw for mark in (b"Exif", b"eXIf", b"EXIF", b"exif", b"xmp"))
        turn = find_orientation(image.getexif) if is_marked else 1
        return image.size if turn > 4 else image.size[::-1]  # its size is width and height
    return 0, 0


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode the whole image."""
    image.load()
    if image.mode.startswith("I"):  # convert() would clip at 255 what goes to 65535
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
