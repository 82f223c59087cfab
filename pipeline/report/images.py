"""Images inside the page, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import ShardSetError
from pipeline.report.inputs import SPLIT, Missing, ShardSet
from pipeline.report.predictions import Counts, row_shares

_MAX_PIXELS = 192
"""Longer side of an embedded image: what is shown needs no more."""

_MAX_HEAT_PIXELS = 250
_RIGHT_RGB = (42, 134, 204)
_WRONG_RGB = (222, 108, 28)


class Gallery:
    """Reads the images of the shown split while that goes well."""

    def __init__(self, shard_set: ShardSet | Missing) -> None:
        self._shard_set = shard_set
        self.fault = shard_set.reason if isinstance(shard_set, Missing) else None
        """Why images are missing, or None."""

    def uri(self, sample: int) -> str | None:
        """The image of a sample of the split; None if it cannot be read, and then `fault` is set.

        After a fault nothing more is read: a file system that is gone may be slow to say so.
        """
        if self.fault or isinstance(self._shard_set, Missing):
            return None
        try:
            pixels = read_image(self._shard_set, self._shard_set.index[sample])
        except (OSError, ShardSetError) as error:
            self.fault = f"Images are left out: {error}."
            return None
        image = Image.fromarray(pixels)
        image.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
        return png_uri(image)


def read_image(shard_set: ShardSet, entry: np.void) -> npt.NDArray[np.uint8]:
    """The image that a row of the split's index points to, uint8 H×W×3.

    Raises `OSError` if its shard cannot be read and `ShardSetError` if the image is damaged.
    """
    manifest = shard_set.manifest
    path = shard_set.path / manifest.split(SPLIT).filenames[entry["shard"]]
    with path.open("rb") as shard:
        shard.seek(int(entry["offset"]))
        content = shard.read(int(entry["num_bytes"]))
    try:
        return codec_of(manifest.encoding).decode(content)
    except ValueError as error:
        raise ShardSetError(f"{path} is damaged at byte {entry['offset']} ({error})") from None


def heat_image_uri(matrix: Counts) -> str:
    """The confusion matrix as an image: stronger where a class goes more often to another.

    Of neighbouring classes that share a pixel the strongest shows.
    """
    shares = row_shares(matrix)
    diagonal = np.diag(np.diag(shares))
    right, wrong = _pool(diagonal), _pool(shares - diagonal)
    pixels = np.empty((*right.shape, 4), np.uint8)
    pixels[..., :3] = np.where((right > 0)[..., None], _RIGHT_RGB, _WRONG_RGB)
    pixels[..., 3] = np.rint(255 * np.sqrt(np.where(right > 0, right, wrong)))
    return png_uri(Image.fromarray(pixels))


def _pool(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Maxima of square blocks, so that at most `_MAX_HEAT_PIXELS` rows and columns are left."""
    block = -(-len(shares) // _MAX_HEAT_PIXELS)
    edges = np.arange(0, len(shares), block)
    rows = np.maximum.reduceat(shares, edges, axis=0)
    return np.asarray(np.maximum.reduceat(rows, edges, axis=1))


def png_uri(image: Image.Image) -> str:
    """The image as a PNG inside a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
