"""Makes what a shard stores of one image.

A JPEG of the wanted size that every decoder reads is stored byte for byte, or with restart markers
in it. Other whole images are converted and counted by their first `RewriteReason`; the rest is
rejected (`decoding`).
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.convert.output import ConversionError
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.jpeg_header import JPEG_START
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import LANCZOS, Pixels, scale_middle
from data_prep.shard_set.recoding import encode_jpeg, recode_jpeg
from data_prep.shard_set.rejection import RewriteReason
from data_prep.sources.source import RawImage

_SAME_PIXELS = (None, "grayscale", "repaired")
"""Flaws of JPEGs whose pixels are stored as they are."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The content of an image's tar member."""

    content: bytes
    pixels: Pixels
    """What a reader of the shard will see."""
    rewritten: RewriteReason | None
    """Why it differs from the source, or None."""


def store(
    raw: RawImage,
    encoding: Encoding,
    size: int | None,
    jpeg_quality: int | None = None,
    restart: int = 0,
) -> StoredImage:
    """Make the content of the image's tar member.

    With `size` the middle square is scaled to size×size; without it the image keeps its size.
    `jpeg_quality` is that of images that are encoded; `restart` of encoding `jpeg` is as in
    `recoding`. Raises `RejectedImage`, and `ConversionError` if the encoding has no room for the
    image.
    """
    codec = codec_of(encoding)
    pixels, flaw, is_honest_jpeg = _read(raw)
    has_size = size is None or pixels.shape[:2] == (size, size)
    if isinstance(raw, bytes) and codec.keeps_jpegs:
        if restart and has_size and flaw in _SAME_PIXELS and raw.startswith(JPEG_START):
            stored = _recode(raw, pixels, restart, is_honest_jpeg=is_honest_jpeg)
            if stored is not None:
                return stored
        if is_honest_jpeg and has_size:
            return StoredImage(raw, pixels, "not_recoded" if restart else None)
        if not raw.startswith(JPEG_START):
            flaw = flaw or "not_jpeg"
    if size is not None and not has_size:
        pixels = scale_middle(pixels, (size, size), LANCZOS)
        flaw = flaw or "resized"
    try:
        quality = jpeg_quality or codec.default_quality
        if restart:
            assert quality is not None, "JPEGs have one"
            content = encode_jpeg(pixels, quality, restart)
        else:
            content = codec.encode(pixels, quality)
    except ValueError as error:
        raise ConversionError(f"--encoding {encoding}: {error}") from None
    if codec.is_lossy:
        pixels = codec.decode(content)
    return StoredImage(content, pixels, flaw)


def _read(raw: RawImage) -> tuple[Pixels, RewriteReason | None, bool]:
    """As `decoding.read_image`, which pixels do not need."""
    if not isinstance(raw, bytes):
        return raw, None, False
    from data_prep.shard_set.decoding import quiet, read_image

    with quiet():
        return read_image(raw)


def _recode(
    raw: bytes, pixels: Pixels, restart: int, *, is_honest_jpeg: bool
) -> StoredImage | None:
    """A JPEG with restart markers; None if it cannot have them, or if that leaves it odd."""
    content = recode_jpeg(raw, restart)
    if content is None:
        return None
    if not is_honest_jpeg:  # but it may be now, without arithmetic codes and damaged metadata
        pixels, _, is_honest_jpeg = _read(content)
    return StoredImage(content, pixels, "recoded") if is_honest_jpeg else None
