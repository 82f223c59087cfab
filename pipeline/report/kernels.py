"""The first layer's kernels as images: figure 3 of the paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.report.images import png_uri
from pipeline.report.inputs import Missing
from pipeline.run.directory import RunDirectory

_NUM_COLUMNS = {"alexnet_2012": 2, "alexnet_2014": 1, "alexnet_single": 1, "alexnet_bn": 1}
"""Of the networks whose first kernels are large enough to show something to the eye."""

_PER_ROW = 16
_ZOOM, _GAP = 4, 4
"""Screen pixels of one weight, and between kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Figure 3, one image a column of the network."""

    step: int
    num_kernels: int
    size: int
    uris: tuple[str, ...]


def read_kernels(run: RunDirectory, network: str | None) -> Kernels | Missing | None:
    """Of the newest good checkpoint; None if the network has no kernels worth a look."""
    if network not in _NUM_COLUMNS:
        return None
    try:
        from pipeline.run import checkpoint  # here, because all else of a report needs no torch

        path = checkpoint.newest_good(run.checkpoints)
        if path is None:
            return Missing("No checkpoint has been saved yet.")
        weights = checkpoint.load(path)["model"]
    except (ImportError, OSError, ValueError) as error:
        return Missing(f"The first layer is left out: {error}.")
    first = next(weight for weight in weights.values() if weight.ndim == 4)
    kernels = first.permute(0, 2, 3, 1).numpy()
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
