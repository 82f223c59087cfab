"""Start and memory with an index that is larger than its data."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import shard_folder
from benchmarks.start import config_of, enlarge, figures
from pipeline.data.open import open_data

NUM_SAMPLES = 300
"""More than the batches of one epoch: 1 of 256; in 13 shards of 24 samples."""


def test_a_large_index_on_one_shard(images: Path, tmp_path: Path) -> None:
    folder = link_images(find_images(images), tmp_path / "images", 24)
    shards = shard_folder(folder, tmp_path / "shards", encoding="jpeg", size=256)
    large = enlarge(shards, tmp_path / "large", NUM_SAMPLES)
    with contextlib.ExitStack() as resources:
        opened = (
            open_data(config_of(folder), torch.device("cpu"), resources)
            for folder in (shards, large)
        )
        reader, large_reader = (
            data.open_evaluation("train", 1, data.normalizer()).opened.reader for data in opened
        )
        assert large_reader.num_samples == NUM_SAMPLES
        one, other = np.zeros((2, 2, 256, 256, 3), np.uint8)
        reader.read(np.array([3, 11]), 0, one)
        large_reader.read(np.array([3 + 24, 11 + 12 * 24]), 0, other)
        np.testing.assert_array_equal(one, other)
    found = figures(enlarge(shards, tmp_path / "small", NUM_SAMPLES), large, rounds=1)
    assert found["samples"] == NUM_SAMPLES
    assert found["seconds_to_first_batch"]["resumed"]["n"] == 1
    assert found["private_bytes_of_rank"]["all"]["median"] > 50e6
    assert abs(found["private_bytes_of_rank"]["for the index"]["median"]) < 20e6
