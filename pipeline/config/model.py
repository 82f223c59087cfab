"""The network: fields of `model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, assert_never, get_args

from data_prep.shard_set.fields import above, at_least, at_most, below
from pipeline.config.marks import (
    NO_INIT,
    TRAINS_CONVOLUTIONS,
    Operational,
    above_zero,
    one_of,
    only_with,
)

ModelName = Literal["alexnet_2012", "alexnet_2014", "alexnet_single", "alexnet_bn", "alexnet_cifar"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)

_SIZES: Mapping[ModelName, tuple[int, int, int]] = {
    "alexnet_2012": (56_868_224, 4097, 0),
    "alexnet_2014": (57_003_840, 4097, 0),
    "alexnet_single": (58_281_344, 4097, 0),
    "alexnet_bn": (46_747_712, 4097, 706),
    "alexnet_cifar": (1_247_296, 257, 803),
}
"""Trained values, but for those of a class; of a class; and BatchNorm's moments."""

Layout = Literal["fused", "split"]
Initialization = Literal["code", "paper", "caffe"]
ResponseNorm = Literal["code", "paper", "none"]
DropoutForm = Literal["inverted", "original"]


def ranks_per_replica(columns: Layout) -> int:
    """Over how many ranks one copy of the network is spread."""
    match columns:
        case "fused":
            return 1
        case "split":
            return 2
        case unknown:
            assert_never(unknown)


_IS_2012 = one_of("model.name", "alexnet_2012")
_HAS_BATCH_NORM = one_of("model.name", "alexnet_bn", "alexnet_cifar")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    name: ModelName = "alexnet_cifar"
    """Which network of `pipeline.model`."""
    columns: Annotated[Layout, Operational, only_with(_IS_2012)] = "fused"
    """Both columns on one rank, or one on each of two ranks, as on the two GPUs of 2012.
    Checkpoints fit both."""
    initialization: Annotated[Initialization, only_with(_IS_2012, NO_INIT)] = "code"
    """As in the 2012 code, in the paper (hardly trains) or in Caffe."""
    response_norm: Annotated[ResponseNorm, only_with(_IS_2012)] = "code"
    """As the 2012 code has it, as the paper prints it, or left out."""
    dropout: Annotated[float, at_least(0), below(1)] = 0.5
    """Probability of dropping an activation of a hidden dense layer."""
    dropout_form: Annotated[DropoutForm, only_with(_IS_2012, above_zero("model.dropout"))] = (
        "inverted"
    )
    """Scale what stays in training, or everything in evaluation (2012)."""
    batch_norm_momentum: Annotated[
        float, above(0), at_most(1), only_with(_HAS_BATCH_NORM, TRAINS_CONVOLUTIONS)
    ] = 0.01
    """Weight of the current batch in BatchNorm's running moments (Keras writes 0.99 for 0.01)."""

    def num_parameters(self, num_classes: int) -> int:
        """Values that are trained, of both columns together."""
        fixed, of_a_class, _ = _SIZES[self.name]
        return fixed + of_a_class * num_classes

    @property
    def num_moments(self) -> int:
        """Values that BatchNorm keeps beside them."""
        return _SIZES[self.name][2]
