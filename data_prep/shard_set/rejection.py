"""Why a conversion changes an image, or rejects it; `docs/data-format.md` has both tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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
    "recoded",  # a JPEG got restart markers; its pixels are the same
    "not_recoded",  # a JPEG that cannot have them without loss: stored as it came
]

RejectReason = Literal[
    "empty",  # no bytes
    "not_an_image",  # no known image format
    "truncated",  # its end is missing
    "undecodable",  # known format, but damaged or of an unknown kind
    "too_large",  # more pixels than Pillow deems safe (a decompression bomb)
]

_REMEDIES: Mapping[RejectReason, str] = {
    "empty": "copy it again from its source",
    "not_an_image": "remove it, or convert it to JPEG or PNG",
    "truncated": "copy it again from its source",
    "undecodable": "copy it again from its source, or convert it to an 8-bit RGB JPEG or PNG",
    "too_large": "scale it down",
}


class RejectedImage(Exception):
    """An image that no rule makes usable."""

    def __init__(self, reason: RejectReason, what: str) -> None:
        super().__init__(f"{reason}: {what}; {_REMEDIES[reason]}")
        self.reason: RejectReason = reason
