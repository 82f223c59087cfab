"""Weights to begin with: fields of `init`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from data_prep.shard_set.fields import above
from data_prep.shard_set.options import Named
from pipeline.config.data import Location
from pipeline.config.marks import given, only_with

Frozen = Literal["none", "conv"]

_WITH_WEIGHTS = only_with(given("init.weights"))


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """The weights that a run begins with, if not with fresh ones."""

    weights: Annotated[Location, Named("--init", "FROM")] = ""
    """Weights of the same network: a run (RUN, RUN@best or RUN@STEP), an export, or a state dict as
    .safetensors or by torch.save, such as torchvision's for alexnet_2014. A last layer for other
    classes is left out, and begins anew. Once the run has a checkpoint, they are not read again."""
    freeze: Annotated[Frozen, Named("--freeze"), _WITH_WEIGHTS] = "none"
    """Layers that stay as they are, bit for bit: all convolutions with their BatchNorm, which then
    normalizes by the moments it came with, in training too."""
    learning_rate_ratio: Annotated[float, above(0), _WITH_WEIGHTS] = 1.0
    """Learning rate of all layers but the last as a multiple of that of the last."""
