"""The resolved configuration of a run: frozen, checked when made, free of torch.

Recipes (`pipeline.config.recipes`) return a `Config`; `pipeline.config.command_line` replaces
fields of it from the command line. The marks in a field's type say what it may hold
(`data_prep.shard_set.fields`), when it has an effect, and whether another value makes another run
(`pipeline.config.marks`).
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from data_prep.shard_set.fields import (
    SEED,
    Limit,
    above,
    at_least,
    choice_of,
    fields_of,
    within,
    wrong,
)
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig, Location, Seconds
from pipeline.config.init import InitConfig
from pipeline.config.marks import (
    OR_NONE,
    Operational,
    PerHost,
    describe_needs,
    one_of,
    only_with,
    show,
    why_idle,
)
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig, ScheduleConfig

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", Precision]
Compilation = Literal["auto", "off", "on"]
DeviceName = Literal["auto", "cpu", "cuda"]

Port = Annotated[int, within(0, 65535, "a port from ")]

LOOPBACK = "127.0.0.1"
"""Where listens what is for this host alone."""

AUTO_ADDRESS = "auto"
"""An exporter's address that is chosen when the job starts: see `MetricsConfig`."""

_ADDRESS = Limit(f"{AUTO_ADDRESS}, 0.0.0.0 or an address of the node", bool)
_PUBLISHES = only_with(one_of("metrics.enabled", True))
_EXPORTS = only_with(one_of("metrics.exporter", True))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and how the `val` split is evaluated."""

    every_epochs: Annotated[float, at_least(0)] = 1.0
    """Epochs between evaluations; one more follows the last step. 0: only that one."""
    block_size: Annotated[int, at_least(1)] = 500
    """Images in one forward pass."""
    views: Annotated[int, choice_of(1, 10)] = 1
    """1: the image, or the middle crop of it. 10: four corners, the middle and their mirror images,
    softmax averaged (2012, section 4.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept."""

    every_epochs: Annotated[float, at_least(0), Operational] = 1.0
    """Epochs between checkpoints; one more follows the last step. 0: only that one."""
    keep: Annotated[int, at_least(1), Operational] = 2
    """Newest checkpoints kept, beside the best: more than 1, so that a damaged one has a spare."""
    background: Annotated[bool, Operational] = True
    """Copy what is saved into memory and write it while the steps go on; otherwise they wait, and
    rank 0 needs no memory for a copy of weights and optimizer state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """What Prometheus sees; see `docs/metrics.md`."""

    enabled: Annotated[bool, PerHost] = True
    """Publish metrics at all."""
    publish_seconds: Annotated[Seconds, PerHost, _PUBLISHES] = 2.0
    """Seconds between two publications of a rank."""
    exporter: Annotated[bool, PerHost, _PUBLISHES] = True
    """Start an exporter on each node."""
    exporter_port: Annotated[Port, PerHost, _EXPORTS] = 9753
    """First port to try."""
    exporter_address: Annotated[str, _ADDRESS, PerHost, _EXPORTS] = AUTO_ADDRESS
    """Where it listens; auto: on loopback if the job has one node, and of several on each one's own
    address, on the way to where the ranks meet. 0.0.0.0 lets other hosts scrape one node too."""
    exporter_certfile: Annotated[Location, PerHost, _EXPORTS] = ""
    """Certificate (PEM) with which exporters serve over TLS; empty: not encrypted."""
    exporter_keyfile: Annotated[Location, PerHost, _EXPORTS] = ""
    """Private key (PEM) of the certificate."""
    exporter_client_cafile: Annotated[Location, PerHost, _EXPORTS] = ""
    """Authorities (PEM) that must have signed a client's certificate; empty: everybody is
    served."""

    def __post_init__(self) -> None:
        if bool(self.exporter_certfile) != bool(self.exporter_keyfile):
            raise wrong(
                "metrics.exporter_keyfile",
                f"{self.exporter_keyfile or 'empty'} with metrics.exporter_certfile "
                f"{self.exporter_certfile or 'empty'}",
                "both, or neither",
            )
        if self.exporter_client_cafile and not self.exporter_certfile:
            raise wrong(
                "metrics.exporter_client_cafile",
                f"{self.exporter_client_cafile} without metrics.exporter_certfile",
                "a certificate of the exporter beside it",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """How ranks talk to each other."""

    device: Annotated[DeviceName, Operational] = "auto"
    """auto: CUDA where there is a GPU for every rank of the node."""
    timeout_seconds: Annotated[Seconds, Operational] = 300.0
    """How long a rank may stand still in training: then the job ends, and says which and where."""
    save_timeout_seconds: Annotated[Seconds, Operational] = 1800.0
    """The same for what rank 0 does alone while the others wait, such as saving."""
    bucket_bytes: Annotated[int, above(0)] = 8 << 20
    """Gradients are averaged in buckets of this size (it decides the order of additions)."""
    compare_replicas: Annotated[bool, Operational] = True
    """Compare the weights of all replicas, bit for bit, at every log and before every save; the run
    fails where they differ."""
    warm_restarts: Annotated[int, at_least(0), Operational] = 0
    """How often lost ranks may be replaced while the others stay and keep the weights in memory,
    under torchrun. On GPUs all ranks begin anew, at the newest checkpoint. 0: never, the job ends
    when a rank is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    distributed: DistributedConfig = DistributedConfig()
    epochs: Annotated[float, above(0)] = 10.0
    """Length of the run; the schedule spans it."""
    global_batch_size: Annotated[int, at_least(1)] = 128
    """Samples of one step, over all ranks and micro-batches."""
    accumulation_steps: Annotated[int, at_least(1), Operational] = 1
    """Micro-batches a rank adds up in one step."""
    precision: PrecisionChoice = "fp32"
    """Type of the network's arithmetic; weights and the optimizer's state are fp32 always. auto:
    bf16 where all devices have instructions for it, else fp16 on GPUs and fp32 on CPUs; it is
    decided when a run begins, and kept."""
    compile: Annotated[Compilation, Operational] = "auto"
    """Fuse the network's small operations with torch.compile; auto: on GPUs."""
    not_learning_after_samples: Annotated[int, at_least(1), Operational] = 1_000_000
    """An alarm rings if the loss is still that of guessing after this number of samples."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random: initialisation, order, augmentation, dropout."""
    log_every_steps: Annotated[int, at_least(1), Operational] = 50
    """Steps between two lines on the console and two `train` events."""

    def __post_init__(self) -> None:
        values = values_of(self)
        for name, field in FIELDS.items():
            field.check(values[name], name, OR_NONE)
        if self.data.is_resident and self.augment.scales_crops:
            raise wrong(
                "data.reader",
                "resident with augment.crop_place random_resized",
                "another reader: a resident image can be cropped, but not scaled",
            )
        if self.evaluation.views > 1 and self.augment.crop_pixels is None:
            raise wrong(
                "evaluation.views",
                f"{self.evaluation.views} without augment.crop_pixels",
                "1, or a crop smaller than the image",
            )
        for name in idle_fields(values):  # they have their defaults, or a saved config misleads
            if values[name] != FIELDS[name].default:
                needs = describe_needs(FIELDS[name])
                expected = f"{show(FIELDS[name].default)}: it has an effect only with {needs}"
                raise wrong(name, show(values[name]), expected)

    @property
    def resolved_precision(self) -> Precision:
        """Raises `RuntimeError` before `pipeline.optim.precision.resolve` has decided on `auto`."""
        if self.precision == "auto":
            raise RuntimeError("the precision is auto: resolve it before anything is computed")
        return self.precision

    def checkpoint_bytes(self, num_classes: int) -> int:
        """Weights, moments of BatchNorm and the optimizer's state, in fp32."""
        weights = self.model.num_parameters(num_classes)
        return 4 * (weights * (1 + self.optim.num_moments) + self.model.num_moments)


FIELDS = fields_of(Config)
"""Every field of a config that is no group, by its dotted name."""


def values_of(config: Config) -> dict[str, Any]:
    """The value of every field by its dotted name."""
    return dict(zip(FIELDS, operator.attrgetter(*FIELDS)(config), strict=True))


def config_of(values: Mapping[str, Any]) -> Config:
    """The inverse of `values_of`; a field that is left out has its default.

    All are set at once, so that checks see only the final state.
    """
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        groups[group][last] = value
    top = groups.pop("", {})
    kinds = {name.partition(".")[0]: field.owner for name, field in FIELDS.items()}
    return Config(**top, **{group: kinds[group](**inner) for group, inner in groups.items()})


def idle_fields(values: Mapping[str, Any]) -> list[str]:
    """The fields that have no effect beside these values."""
    return [name for name in FIELDS if why_idle(name, values, FIELDS) is not None]


def with_effect(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of all fields, but the default of each that has no effect beside them."""
    return {**values, **{name: FIELDS[name].default for name in idle_fields(values)}}


def is_operational(name: str) -> bool:
    """Whether a run may be resumed with another value of the field."""
    return Operational in FIELDS[name].marks or PerHost in FIELDS[name].marks
