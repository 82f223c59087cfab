"""Reads some images of `val`, whole and as scaled crops: SHARDS, and where to save them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import evaluation_crop_policy, training_crop_policy
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers.open import open_reader


def main() -> None:
    config = DataConfig(shards=sys.argv[1])
    shards = ShardSet.opened(config)
    size = shards.manifest.image_size
    scaled = AugmentConfig(crop_pixels=24, crop_place="random_resized")
    policies = (
        evaluation_crop_policy(AugmentConfig(), size),
        training_crop_policy(scaled, size, 0),
    )
    with Path(sys.argv[2]).open("wb") as file:
        for policy in policies:
            reader = open_reader(config, shards, "val", policy, max_corrupt=0, files=None)
            with contextlib.closing(reader):
                images = np.zeros((3, *reader.image_shape), np.uint8)
                reader.read(np.array([0, 1, 2]), 0, images)
                np.save(file, images)


if __name__ == "__main__":
    main()
