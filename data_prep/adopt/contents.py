"""What adopted tars hold: sizes and colours of images, and whether samples are shuffled."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.adopt.tar_record import TarRecord
from data_prep.convert.output import ConversionError
from data_prep.convert.statistics import PixelSums
from data_prep.shard_set.decoding import quiet, read_image
from data_prep.shard_set.rejection import RejectedImage

_SUMMED_PIXELS = 64
"""Of the shorter side of an image: neighbours say the same, and decoding is slow enough."""

_log = logging.getLogger(__name__)

_SORTED_SHARE = 0.5
"""Of neighbours with one label, beyond what chance gives: with more a tar is not shuffled."""


def common_size(records: Iterable[TarRecord]) -> tuple[int | None, int | None]:
    """Height and width of every image, if they have one size."""
    sizes = np.concatenate([each.sizes for each in records])
    height, width = sizes[0].tolist()
    return (height, width) if height and (sizes == sizes[0]).all() else (None, None)


def warn_if_sorted(
    names: Sequence[str], records: Mapping[str, TarRecord], num_classes: int
) -> None:
    """Say so if the samples of tars lie class by class."""
    for name in names:
        labels = records[name].index["label"]
        same = float(np.mean(labels[1:] == labels[:-1])) if len(labels) > 2 else 0.0
        if same > 1 / num_classes + _SORTED_SHARE:
            _log.warning(
                "%s is not shuffled: %.0f %% of its neighbours are of one class. Training shuffles "
                "all samples and so does not mind; with --data.shuffle_shards N it would mix only "
                "the N tars that are open at a time, so leave that out, or convert the set with "
                "'python -m data_prep shard webdataset'",
                name,
                100 * same,
            )
            return


def sum_pixels(tars: Mapping[Path, TarRecord], num_images: int, num_threads: int) -> PixelSums:
    """Sums over that many images, spread evenly over the tars.

    Raises `ConversionError` if none can be decoded.
    """
    paths = list(tars)
    index = np.concatenate([record.index for record in tars.values()])
    wanted = min(num_images, len(index))
    rows = np.unique(np.linspace(0, len(index) - 1, wanted).astype(np.intp)).tolist()

    def read(row: int) -> PixelSums | None:
        shard, offset, num_bytes, _ = index[row].tolist()
        with paths[shard].open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), num_bytes, offset)
        sums = PixelSums()
        try:
            pixels = read_image(content)[0]
        except RejectedImage as error:
            _log.warning("%s: an image cannot be used: %s", paths[shard], error)
            return None
        step = max(1, min(pixels.shape[:2]) // _SUMMED_PIXELS)
        sums.add(pixels[::step, ::step])
        return sums

    total = PixelSums()
    with quiet(), ThreadPoolExecutor(num_threads) as threads:
        for sums in threads.map(read, rows):
            if sums is not None:
                total.merge(sums)
    if not total.num_images:
        raise ConversionError("no image of train can be decoded: are the tars of images?")
    return total
