"""The optimizer and its learning rate: fields of `optim` and `schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never, get_args

from data_prep.shard_set.fields import Limit, above, at_least, below, between, within, wrong
from pipeline.config.marks import TRAINS_CONVOLUTIONS, above_zero, given, one_of, only_with

OptimizerName = Literal["sgd", "adam", "adamw"]
MomentumForm = Literal["gradient", "velocity"]
ScheduleName = Literal["constant", "cosine", "linear", "step", "dexp", "plateau"]
BiasSchedule = Literal["follow", "constant", "halfway"]

Share = Annotated[float, at_least(0), below(1)]
Epochs = Annotated[
    tuple[float, ...],
    Limit(
        "epochs in rising order",
        lambda epochs: list(epochs) == sorted({*epochs}) and min((0, *epochs)) >= 0,
    ),
]

_SGD = one_of("optim.name", "sgd")
_ADAM = one_of("optim.name", "adam", "adamw")
_HAS_MOMENTUM = above_zero("optim.momentum")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and the loss it minimises."""

    name: OptimizerName = "sgd"
    """SGD with momentum, Adam (Kingma and Ba, arXiv 1412.6980), or AdamW (arXiv 1711.05101)."""
    learning_rate: Annotated[float, above(0)] = 0.01
    """Peak learning rate, for the configured global batch size as it is: nothing scales it."""
    momentum: Annotated[Share, only_with(_SGD)] = 0.9
    """SGD's momentum: the share of it that stays in each step."""
    nesterov: Annotated[bool, only_with(_SGD, _HAS_MOMENTUM)] = False
    """Use Nesterov's form of the momentum."""
    momentum_form: Annotated[
        MomentumForm, only_with(_SGD, _HAS_MOMENTUM, one_of("optim.nesterov", False))
    ] = "gradient"
    """What the momentum holds: past gradients, as torch does, or past updates, as in 2012: there
    the old, larger updates die out slowly when the rate falls."""
    bias_learning_rate_ratio: Annotated[float, above(0)] = 1.0
    """Learning rate of biases as a multiple of that of weights (2 in 2012)."""
    beta1: Annotated[Share, only_with(_ADAM)] = 0.9
    """Adam's beta1: the share of the first moment that stays in each step."""
    beta2: Annotated[Share, only_with(_ADAM)] = 0.999
    """Adam's beta2: the share of the second moment that stays in each step."""
    epsilon: Annotated[float, above(0), only_with(_ADAM)] = 1e-8
    """Adam's epsilon: added to the root of the second moment, by which the first one is divided."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decay of weights of two or more dimensions; biases and BatchNorm's parameters have none."""
    label_smoothing: Share = 0.0
    """Share of the target that goes to all classes alike (Szegedy, arXiv 1512.00567, section 7)."""
    clip_norm: Annotated[float | None, above(0)] = None
    """Scale gradients down to this norm at most; none: leave them as they are."""

    @property
    def num_moments(self) -> int:
        """Values that the optimizer keeps beside each parameter."""
        match self.name:
            case "sgd":
                return int(self.momentum > 0)
            case "adam" | "adamw":
                return 2
            case unknown:
                assert_never(unknown)


_CHANGES = one_of("schedule.name", *(name for name in get_args(ScheduleName) if name != "constant"))
_ENDS_LOW = one_of("schedule.name", "cosine", "linear", "dexp")
_DROPS = (one_of("schedule.name", "step", "plateau"), given("schedule.conv1_step_epochs"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate goes over the run; see `pipeline.optim.schedule`."""

    name: ScheduleName = "constant"
    """What follows the warm-up."""
    warmup_ratio: Share = 0.0
    """Share of the run in which the rate rises in a straight line, before the schedule begins."""
    final_ratio: Annotated[float, within(0, 1), only_with(_ENDS_LOW)] = 0.0
    """Share of the peak that the schedule ends at."""
    num_stairs: Annotated[int, at_least(2), only_with(one_of("schedule.name", "dexp"))] = 4
    """Equally long stairs, each lower by the same factor, in which the rate goes there."""
    step_epochs: Annotated[Epochs, only_with(one_of("schedule.name", "step"))] = ()
    """When the rate is multiplied by `factor`."""
    factor: Annotated[float, between(0, 1), only_with(_DROPS)] = 0.1
    """What each drop multiplies the rate by."""
    patience_evaluations: Annotated[
        int, at_least(1), only_with(one_of("schedule.name", "plateau"))
    ] = 3
    """Evaluations in a row without a lower loss after which the rate drops."""
    biases: Annotated[BiasSchedule, only_with((_CHANGES, one_of("schedule.biases", "halfway")))] = (
        "follow"
    )
    """Biases drop with the weights, never (net 145 of 2012), or to a tenth at half of the run (net
    170)."""
    conv1_step_epochs: Annotated[Epochs, only_with(TRAINS_CONVOLUTIONS)] = ()
    """When the rate of the first layer's weights is multiplied by `factor` once more."""
    conv1_freeze_epoch: Annotated[float | None, at_least(0), only_with(TRAINS_CONVOLUTIONS)] = None
    """From when the first layer stays as it is; none: never."""

    def __post_init__(self) -> None:
        if self.name == "dexp" and self.final_ratio == 0:
            raise wrong(
                "schedule.final_ratio",
                f"{self.final_ratio} with schedule.name dexp",
                "above 0: each stair is lower by the same factor",
            )
        if self.name == "step" and not self.step_epochs:
            raise wrong(
                "schedule.step_epochs",
                "empty with schedule.name step",
                "the epochs at which the rate drops, such as 30,60,80",
            )
