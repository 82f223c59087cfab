"""Images inside the page, as data URIs: samples, the confusion matrix, the first kernels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import ShardSetError
from pipeline.report.inputs import Missing, ShardSet
from pipeline.report.predictions import Counts, row_shares
from pipeline.run.directory import RunDirectory

MAX_PIXELS = 192
"""Longer side of an embedded image; the page shows no more."""
MAX_NEAR_PIXELS = 128
"""Of one of those that are nearest to another one."""

_MAX_EXACT_PIXELS = 64
"""Up to this longer side an image is embedded without loss."""

_MAX_HEAT_PIXELS = 250
_RIGHT_RGB = (42, 134, 204)
_WRONG_RGB = (222, 108, 28)

_NUM_COLUMNS = {"alexnet_2012": 2, "alexnet_2014": 1, "alexnet_single": 1, "alexnet_bn": 1}
"""Columns of the networks whose first kernels are large enough to look at."""

_PER_ROW = 16
_ZOOM, _GAP = 4, 4
"""Screen pixels of one weight, and between kernels."""


def sample_uris(
    shard_set: ShardSet | Missing, samples: Iterable[int], max_pixels: int = MAX_PIXELS
) -> tuple[dict[int, str], str | None]:
    """The images of samples of the split, and why some are missing, or None.

    After a fault nothing more is read: a file system that is gone may be slow to say so.
    """
    uris: dict[int, str] = {}
    if isinstance(shard_set, Missing):
        return uris, shard_set.reason
    for sample in samples:
        try:
            image = Image.fromarray(read_image(shard_set, shard_set.index[sample]))
        except (OSError, ShardSetError) as error:
            return uris, f"Images are left out: {error}."
        image.thumbnail((max_pixels, max_pixels))
        uris[sample] = photo_uri(image)
    return uris, None


def read_image(shard_set: ShardSet, entry: np.void) -> npt.NDArray[np.uint8]:
    """The image that a row of the split's index points to, uint8 H×W×3.

    Raises `OSError` if its shard cannot be read and `ShardSetError` if the image is damaged.
    """
    manifest = shard_set.manifest
    path = manifest.split(shard_set.split).shard_paths(shard_set.path)[entry["shard"]]
    with path.open("rb") as shard:
        shard.seek(int(entry["offset"]))
        content = shard.read(int(entry["num_bytes"]))
    try:
        return codec_of(manifest.encoding).decode(content)
    except ValueError as error:
        raise ShardSetError(f"{path} is damaged at byte {entry['offset']} ({error})") from None


def heat_image_uri(matrix: Counts) -> str:
    """The confusion matrix as an image: stronger where a class is taken for another more often.

    Neighbouring classes may share a pixel: it shows the strongest.
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
    return _uri(image, "png", optimize=True)


def photo_uri(image: Image.Image) -> str:
    """As a PNG if it is tiny, else as a JPEG of a quarter of the bytes."""
    if max(image.size) <= _MAX_EXACT_PIXELS:
        return png_uri(image)
    return _uri(image, "jpeg", quality=85)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Figure 3, one image a column of the network."""

    step: int
    num_kernels: int
    size: int
    uris: tuple[str, ...]


def read_kernels(run: RunDirectory, network: str | None) -> Kernels | Missing | None:
    """Those of the newest good checkpoint; None if the network's kernels are too small."""
    if network not in _NUM_COLUMNS:
        return None
    none = Missing("No checkpoint has been saved yet.")
    if not any(run.checkpoints.glob("step-*")):
        return none
    try:
        # Here, because all else of a report needs no torch.
        from pipeline.run import checkpoint
        from pipeline.trained.stored import checked_weights

        path = checkpoint.newest_good(run.checkpoints)
        if path is None:
            return none
        weights = checked_weights(checkpoint.load(path).get("model"), path)
    except (ImportError, OSError, ValueError) as error:
        return Missing(f"The first layer is left out: {error}.")
    layers = (weight for weight in weights.values() if weight.ndim == 4)
    first = next((weight for weight in layers if weight.shape[1] == 3 and weight.numel()), None)
    if first is None:
        return Missing(f"The first layer is left out: {path} has no kernels of three colours.")
    kernels = first.detach().float().permute(0, 2, 3, 1).numpy()
    columns = np.array_split(kernels, _NUM_COLUMNS[network])
    return Kernels(
        step=checkpoint.step_of(path),
        num_kernels=len(kernels),
        size=kernels.shape[1],
        uris=tuple(png_uri(_sheet(column)) for column in columns),
    )


def _sheet(kernels: npt.NDArray[np.float32]) -> Image.Image:
    """Kernels N×K×K×3 in rows of 16, each stretched from its lowest to its highest weight."""
    low, high = (extreme(axis=(1, 2, 3), keepdims=True) for extreme in (kernels.min, kernels.max))
    shades = np.rint(255 * (kernels - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    large = shades.repeat(_ZOOM, axis=1).repeat(_ZOOM, axis=2)
    pitch, num_rows = large.shape[1] + _GAP, -(-len(large) // _PER_ROW)
    sheet = np.zeros((num_rows * pitch - _GAP, _PER_ROW * pitch - _GAP, 4), np.uint8)
    for number, kernel in enumerate(large):
        top, left = (place * pitch for place in divmod(number, _PER_ROW))
        cell = sheet[top : top + kernel.shape[0], left : left + kernel.shape[1]]
        cell[..., :3], cell[..., 3] = kernel, 255
    return Image.fromarray(sheet)
