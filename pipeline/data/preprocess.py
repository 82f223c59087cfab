"""From stored pixels to the network's input, as a run's config and its shard set say."""

from __future__ import annotations

import torch

from data_prep.manifest import Manifest
from pipeline.config import AugmentConfig
from pipeline.data.augment import Normalizer, apply, draw
from pipeline.data.partition import Indices


def build_normalizer(config: AugmentConfig, manifest: Manifest, device: torch.device) -> Normalizer:
    """The normalization for training and evaluation alike."""
    if config.normalize == "none":
        return Normalizer((0.0,) * 3, (1.0,) * 3, device)
    return Normalizer(manifest.statistics.mean, manifest.statistics.std, device)


class Augmenter:
    """Augments and normalizes training images; the draws depend on (seed, epoch, sample) only."""

    def __init__(self, config: AugmentConfig, seed: int, normalizer: Normalizer) -> None:
        self._config = config
        self._seed = seed
        self._normalizer = normalizer

    def __call__(self, images: torch.Tensor, samples: Indices, epoch: int) -> torch.Tensor:
        """uint8 N×H×W×3 with their sample numbers to float32 N×3×H×W, channels last."""
        if self._config.shift_pixels or self._config.flip != "none":
            draws = draw(self._config, self._seed, epoch, samples)
            images = apply(images, draws, self._config.shift_pixels)
        return self._normalizer(images)
