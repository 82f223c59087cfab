"""The resolved configuration of a run: frozen, checked when made, free of torch.

Recipes (`pipeline.config.recipes`) return a `Config`; `pipeline.config.command_line` replaces
fields of it from the command line. A field marked `operational()` says how a run is carried out
and not what it computes: it may differ when a run is resumed, all others must be as they were.
A field that only matters beside some values of others declares them as its conditions
(`pipeline.config.conditions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, assert_never, get_args

from data_prep.shard_set.files import path_option
from pipeline.config.conditions import (
    Condition,
    Requirement,
    above_zero,
    describe_needs,
    given,
    one_of,
    only_with,
    show,
    why_idle,
)

ModelName = Literal["alexnet_2012", "alexnet_2014", "alexnet_single", "alexnet_bn", "alexnet_cifar"]
Layout = Literal["fused", "split"]
Initialization = Literal["code", "paper", "caffe"]
ResponseNorm = Literal["code", "paper", "none"]
DropoutForm = Literal["inverted", "original"]
CropPlace = Literal["random", "middle", "random_resized"]
Flip = Literal["none", "random", "alternating"]
Normalization = Literal["none", "mean_std", "mean_image"]
ComponentsOfColor = Literal["original", "shards"]
OptimizerName = Literal["sgd", "adam", "adamw"]
MomentumForm = Literal["gradient", "velocity"]
ScheduleName = Literal["constant", "cosine", "linear", "step", "dexp", "plateau"]
BiasSchedule = Literal["follow", "constant", "halfway"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", Precision]
Compilation = Literal["auto", "off", "on"]
DeviceName = Literal["auto", "cpu", "cuda"]
ReaderName = Literal["tar", "remote", "beton", "resident"]

IMAGE_SIZES = "images"
"""The fact of a shard set that some fields need: whether its images are of one size."""
ONE_SIZE, SEVERAL_SIZES = "of one size", "of several sizes"

AUTO_ADDRESS = "auto"
"""An exporter's address that is chosen when the job starts: see `MetricsConfig`."""

Location = Annotated[str, "the absolute path of a file or directory, or a URL; empty: none"]

_MAX_SECONDS = 1e6
"""Longer than a job waits for anything, and short enough for every timer."""


def operational(default: Any, *conditions: Condition | Requirement) -> Any:
    """A field that may change when a run is resumed."""
    return field(default=default, metadata={"operational": True} | only_with(*conditions))


def conditional(default: Any, *conditions: Condition | Requirement) -> Any:
    """A field that has an effect only if all the `conditions` hold."""
    return field(default=default, metadata=only_with(*conditions))


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}; expected {expected}")


def _require_duration(name: str, seconds: float) -> None:
    expected = f"above 0, at most {_MAX_SECONDS:,.0f}"
    _require(0 < seconds <= _MAX_SECONDS, name, seconds, expected)


def is_url(shards: str) -> bool:
    """Whether a shard set is to be fetched, and not a directory of this host."""
    return "://" in shards or shards.startswith("pipe:")


def located(text: str) -> str:
    """The `Location` that a user means by `text`: it holds in every folder.

    Raises `PathOptionError` for the `~` of nobody.
    """
    return location_option(text) if text else text


def location_option(text: str) -> str:
    """The same of an option that is left out where there is none: empty it is an error, too."""
    return text if is_url(text) else str(path_option(text).absolute())


def ranks_per_replica(columns: Layout) -> int:
    """Over how many ranks one copy of the network is spread."""
    match columns:
        case "fused":
            return 1
        case "split":
            return 2
        case unknown:
            assert_never(unknown)


_AT_URL = Condition("data.shards", "at a URL", is_url)
_SGD = one_of("optim.name", "sgd")
_ADAM = one_of("optim.name", "adam", "adamw")
_OF_2012 = one_of("model.name", "alexnet_2012")
_CROPS = given("augment.crop_pixels")
_ADDS_COLOR = above_zero("augment.color_noise")
_CHANGING = tuple(name for name in get_args(ScheduleName) if name != "constant")
_PUBLISHES = one_of("metrics.enabled", True)
_EXPORTS = one_of("metrics.exporter", True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and how they are read."""

    shards: Location = operational("")
    """Directory of the shard set, or its URL: see "Remote shards" in docs/operations.md. It may be
    moved: its manifest's hash is what is compared."""
    reader: ReaderName = operational("tar")
    """How `train` is read: images from local tars as they are needed, from tars staged from a URL,
    from one .beton file, or all of them once, decoded, into the memory of the devices."""
    beton: Location = operational("", one_of("data.reader", "beton"))
    """The .beton file of the shard set."""
    shuffle_shards: int | None = None
    """None: shuffle all samples at once; N: shuffle the shards, then the samples of N shards at a
    time, so that a cache of the shards may be smaller than they are."""
    drop_last: bool = True
    """Leave out the epoch's last, smaller batch (other samples in every epoch)."""
    decode_threads: int = operational(1)
    """Threads of a rank that read and decode."""
    prefetch_batches: int = operational(4)
    """Batches read ahead of the one in use."""
    max_corrupt_ratio: float = operational(1e-4)
    """Share of the train split that a rank may find damaged: each such image is replaced by the
    next good one and counted. Of `val` none may be."""
    cache_dir: Location = operational("", _AT_URL)
    """Directory, on a local disk of each host, that shards from a URL are staged into. Jobs of a
    host may share it."""
    cache_bytes: int | None = operational(None, _AT_URL)
    """Most that the shards in it may take, of all jobs together; none: what the disk has."""
    fetch_timeout_seconds: float = operational(30.0, _AT_URL)
    """After so long without a byte of a file an attempt to fetch it has failed. All attempts should
    end within distributed.timeout_seconds, or ranks that wait for this one give up first."""
    fetch_attempts: int = operational(5, _AT_URL)
    """Attempts to fetch a file before the run ends; the pauses between them double."""

    @property
    def is_remote(self) -> bool:
        """Whether `shards` is a URL."""
        return is_url(self.shards)

    @property
    def is_resident(self) -> bool:
        """Whether `train` lies in the memory of the devices while it is trained on."""
        match self.reader:
            case "resident":
                return True
            case "tar" | "remote" | "beton":
                return False
            case unknown:
                assert_never(unknown)

    def __post_init__(self) -> None:
        self._check_reader()
        for name in ("shuffle_shards", "cache_bytes"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"data.{name}", value, "at least 1, or none")
        _require_duration("data.fetch_timeout_seconds", self.fetch_timeout_seconds)
        _require(self.fetch_attempts > 0, "data.fetch_attempts", self.fetch_attempts, "at least 1")
        _require(self.decode_threads > 0, "data.decode_threads", self.decode_threads, "at least 1")
        _require(
            self.prefetch_batches > 0, "data.prefetch_batches", self.prefetch_batches, "at least 1"
        )
        _require(
            0 <= self.max_corrupt_ratio <= 1,
            "data.max_corrupt_ratio",
            self.max_corrupt_ratio,
            "0 to 1",
        )

    def _check_reader(self) -> None:
        _require(
            not self.is_remote or self.cache_dir != "",
            "data.shards",
            f"the URL {self.shards} without data.cache_dir",
            "a directory on a local disk to stage the shards into",
        )
        allowed = ("remote", "resident") if self.is_remote else ("tar", "beton", "resident")
        _require(
            self.shards == "" or self.reader in allowed,
            "data.reader",
            f"{self.reader} with data.shards {self.shards}",
            f"{', '.join(allowed[:-1])} or {allowed[-1]} where shards are "
            f"{'at a URL' if self.is_remote else 'on this host'}",
        )
        _require(
            self.reader != "beton" or self.beton != "",
            "data.beton",
            "empty with data.reader beton",
            "the file that 'python -m data_prep beton' made",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """From stored pixels to the network's input, on the device."""

    shift_pixels: int = conditional(0, one_of("augment.crop_pixels", None))
    """Random shift by up to so many pixels each way, edges mirrored."""
    crop_pixels: int | None = None
    """Train and evaluate on squares of this size; none: on the whole image."""
    crop_place: CropPlace = conditional("random", _CROPS)
    """Which square of a training image, in evaluation always the middle one; or a random area at a
    random aspect ratio, scaled to a square (Szegedy, arXiv 1409.4842)."""
    crop_min_area: float = conditional(0.08, one_of("augment.crop_place", "random_resized"))
    """Least share of an image's area that a random area has."""
    evaluation_pixels: int = conditional(256, one_of(IMAGE_SIZES, SEVERAL_SIZES))
    """What the middle square of each image is scaled to in evaluation, before its middle
    `crop_pixels`, or ten views, are taken."""
    flip: Flip = "none"
    """Mirror images at random, or every image in every second epoch (Jordan, arXiv 2404.00498)."""
    normalize: Normalization = "mean_std"
    """Leave pixels in 0–255; subtract the train split's mean and divide by its deviation; or
    subtract the middle of its mean image (2012)."""
    color_noise: float = 0.0
    """Size of random colour shifts along the components of RGB (0.1 in 2012; section 4.1), as a
    share of their deviations. Training images are then divided by 1 plus it, as the code does."""
    color_components: ComponentsOfColor = conditional("original", _ADDS_COLOR)
    """The components that the 2012 code used, or those of the train split."""
    color_noise_until_epoch: float | None = conditional(None, _ADDS_COLOR)
    """When colour noise, and the division with it, ends; none: never."""

    @property
    def scales_crops(self) -> bool:
        """Whether crops of any size are taken, and scaled to one."""
        match self.crop_place:
            case "random" | "middle":
                return False
            case "random_resized":
                return True
            case unknown:
                assert_never(unknown)

    def __post_init__(self) -> None:
        _require(self.shift_pixels >= 0, "augment.shift_pixels", self.shift_pixels, "0 or more")
        _require(
            self.crop_pixels is None or self.crop_pixels > 0,
            "augment.crop_pixels",
            self.crop_pixels,
            "at least 1, or none",
        )
        _require(
            0 < self.crop_min_area <= 1,
            "augment.crop_min_area",
            self.crop_min_area,
            "above 0, at most 1",
        )
        _require(
            self.evaluation_pixels > 0,
            "augment.evaluation_pixels",
            self.evaluation_pixels,
            "at least 1",
        )
        _require(self.color_noise >= 0, "augment.color_noise", self.color_noise, "0 or more")
        _require(
            self.color_noise_until_epoch is None or self.color_noise_until_epoch >= 0,
            "augment.color_noise_until_epoch",
            self.color_noise_until_epoch,
            "0 or more, or none",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    name: ModelName = "alexnet_cifar"
    """Which network of `pipeline.model`."""
    columns: Layout = operational("fused", _OF_2012)
    """Both columns on one rank, or one on each of two ranks, as on the two GPUs of 2012.
    Checkpoints fit both."""
    initialization: Initialization = conditional("code", _OF_2012)
    """That of the 2012 code, of the paper (hardly trains) or of Caffe."""
    response_norm: ResponseNorm = conditional("code", _OF_2012)
    """As the 2012 code has it, as the paper prints it, or left out."""
    dropout: float = 0.5
    """Probability of dropping an activation of a hidden dense layer."""
    dropout_form: DropoutForm = conditional("inverted", _OF_2012, above_zero("model.dropout"))
    """Scale what stays in training, or everything in evaluation (2012)."""
    batch_norm_momentum: float = conditional(
        0.01, one_of("model.name", "alexnet_bn", "alexnet_cifar")
    )
    """Weight of the current batch in BatchNorm's running moments (Keras writes 0.99 for 0.01)."""

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "0 or more, below 1")
        _require(
            0 < self.batch_norm_momentum <= 1,
            "model.batch_norm_momentum",
            self.batch_norm_momentum,
            "above 0, at most 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and the loss it minimises."""

    name: OptimizerName = "sgd"
    """SGD with momentum, Adam (Kingma and Ba, arXiv 1412.6980), or AdamW (arXiv 1711.05101)."""
    learning_rate: float = 0.01
    """Peak learning rate, for the configured global batch size as it is: nothing scales it."""
    momentum: float = conditional(0.9, _SGD)
    """Share of the momentum that stays in each step."""
    nesterov: bool = conditional(False, _SGD, above_zero("optim.momentum"))
    """Nesterov's form of the momentum."""
    momentum_form: MomentumForm = conditional(
        "gradient", _SGD, above_zero("optim.momentum"), one_of("optim.nesterov", False)
    )
    """What the momentum holds: past gradients, as torch does, or past updates, as in 2012: there
    the old, larger updates die out slowly when the rate falls."""
    bias_learning_rate_ratio: float = 1.0
    """Learning rate of biases as a multiple of that of weights (2 in 2012)."""
    beta1: float = conditional(0.9, _ADAM)
    """Share of the first moment that stays in each step."""
    beta2: float = conditional(0.999, _ADAM)
    """Share of the second moment that stays in each step."""
    epsilon: float = conditional(1e-8, _ADAM)
    """What is added to the root of the second moment, by which the first one is divided."""
    weight_decay: float = 0.0
    """On weights of two or more dimensions; biases and BatchNorm's parameters have none."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike (Szegedy, arXiv 1512.00567, section 7)."""
    clip_norm: float | None = None
    """Scale gradients down to this norm at most."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        for name in ("momentum", "beta1", "beta2", "label_smoothing"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}", value, "0 or more, below 1")
        _require(
            self.bias_learning_rate_ratio > 0,
            "optim.bias_learning_rate_ratio",
            self.bias_learning_rate_ratio,
            "above 0",
        )
        _require(self.epsilon > 0, "optim.epsilon", self.epsilon, "above 0")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            "optim.clip_norm",
            self.clip_norm,
            "above 0, or none",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate goes over the run; see `pipeline.optim.schedule`."""

    name: ScheduleName = "constant"
    """What follows the warm-up."""
    warmup_ratio: float = 0.0
    """Share of the run in which the rate rises in a straight line, before the schedule begins."""
    final_ratio: float = conditional(0.0, one_of("schedule.name", "cosine", "linear", "dexp"))
    """Share of the peak that the schedule ends at."""
    num_stairs: int = conditional(4, one_of("schedule.name", "dexp"))
    """Equally long stairs, each lower by the same factor, in which the rate goes there."""
    step_epochs: tuple[float, ...] = conditional((), one_of("schedule.name", "step"))
    """When the rate is multiplied by `factor`."""
    factor: float = conditional(
        0.1, (one_of("schedule.name", "step", "plateau"), given("schedule.conv1_step_epochs"))
    )
    """What each drop multiplies the rate by."""
    patience_evaluations: int = conditional(3, one_of("schedule.name", "plateau"))
    """Evaluations in a row without a lower loss after which the rate drops."""
    biases: BiasSchedule = conditional(
        "follow", (one_of("schedule.name", *_CHANGING), one_of("schedule.biases", "halfway"))
    )
    """Biases drop with the weights, never (net 145 of 2012), or to a tenth at half of the run (net
    170)."""
    conv1_step_epochs: tuple[float, ...] = ()
    """When the rate of the first layer's weights is multiplied by `factor` once more."""
    conv1_freeze_epoch: float | None = None
    """From when the first layer stays as it is; none: never."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.warmup_ratio < 1,
            "schedule.warmup_ratio",
            self.warmup_ratio,
            "0 or more, below 1",
        )
        _require(0 <= self.final_ratio <= 1, "schedule.final_ratio", self.final_ratio, "0 to 1")
        _require(0 < self.factor < 1, "schedule.factor", self.factor, "between 0 and 1")
        for name in ("step_epochs", "conv1_step_epochs"):
            epochs = getattr(self, name)
            is_rising = list(epochs) == sorted(set(epochs)) and min((0, *epochs)) >= 0
            _require(is_rising, f"schedule.{name}", epochs, "epochs in rising order")
        _require(
            self.conv1_freeze_epoch is None or self.conv1_freeze_epoch >= 0,
            "schedule.conv1_freeze_epoch",
            self.conv1_freeze_epoch,
            "0 or more, or none",
        )
        _require(self.num_stairs > 1, "schedule.num_stairs", self.num_stairs, "at least 2")
        _require(
            self.name != "dexp" or self.final_ratio > 0,
            "schedule.final_ratio",
            f"{self.final_ratio} with schedule.name dexp",
            "above 0: each stair is lower by the same factor",
        )
        _require(
            self.name != "step" or len(self.step_epochs) > 0,
            "schedule.step_epochs",
            "empty with schedule.name step",
            "the epochs at which the rate drops, such as 30,60,80",
        )
        _require(
            self.patience_evaluations > 0,
            "schedule.patience_evaluations",
            self.patience_evaluations,
            "at least 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and how the `val` split is evaluated."""

    every_epochs: float = 1.0
    """Epochs between evaluations; one more follows the last step. 0: only that one."""
    block_size: int = 500
    """Images in one forward pass."""
    views: int = 1
    """1: the image, or the middle crop of it. 10: four corners, the middle and their mirror images,
    softmax averaged (2012, section 4.1)."""

    def __post_init__(self) -> None:
        _require(self.views in (1, 10), "evaluation.views", self.views, "1 or 10")
        _require(self.every_epochs >= 0, "evaluation.every_epochs", self.every_epochs, "0 or more")
        _require(self.block_size > 0, "evaluation.block_size", self.block_size, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept."""

    every_epochs: float = operational(1.0)
    """Epochs between checkpoints; one more follows the last step. 0: only that one."""
    keep: int = operational(2)
    """Newest checkpoints kept, beside the best: more than 1, so that a damaged one has a spare."""

    def __post_init__(self) -> None:
        _require(self.every_epochs >= 0, "checkpoint.every_epochs", self.every_epochs, "0 or more")
        _require(self.keep > 0, "checkpoint.keep", self.keep, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """What Prometheus sees; see `docs/metrics.md`."""

    enabled: bool = operational(True)
    """Publish metrics at all."""
    publish_seconds: float = operational(2.0, _PUBLISHES)
    """Seconds between two publications of a rank."""
    exporter: bool = operational(True, _PUBLISHES)
    """Start an exporter on each node."""
    exporter_port: int = operational(9753, _EXPORTS)
    """First port to try."""
    exporter_address: str = operational(AUTO_ADDRESS, _EXPORTS)
    """Where it listens; auto: on loopback if the job has one node, and of several on each one's own
    address, on the way to where the ranks meet. 0.0.0.0 lets other hosts scrape one node too."""
    exporter_certfile: Location = operational("", _EXPORTS)
    """Certificate (PEM) with which exporters serve over TLS; empty: not encrypted."""
    exporter_keyfile: Location = operational("", _EXPORTS)
    """Its private key (PEM)."""
    exporter_client_cafile: Location = operational("", _EXPORTS)
    """Authorities (PEM) of which a client must show a certificate; empty: everybody is served."""
    exporter_linger_seconds: float = operational(180.0, _EXPORTS)
    """How long the last values are served after the ranks are gone."""

    def __post_init__(self) -> None:
        _require_duration("metrics.publish_seconds", self.publish_seconds)
        _require(
            0 <= self.exporter_port < 65536,
            "metrics.exporter_port",
            self.exporter_port,
            "a port from 0 to 65535",
        )
        _require(
            self.exporter_linger_seconds >= 0,
            "metrics.exporter_linger_seconds",
            self.exporter_linger_seconds,
            "0 or more",
        )
        _require(
            self.exporter_address != "",
            "metrics.exporter_address",
            "empty",
            f"{AUTO_ADDRESS}, 0.0.0.0 or an address of the node",
        )
        has_certificate = self.exporter_certfile != ""
        _require(
            has_certificate == (self.exporter_keyfile != ""),
            "metrics.exporter_keyfile",
            f"{self.exporter_keyfile or 'empty'} with metrics.exporter_certfile "
            f"{self.exporter_certfile or 'empty'}",
            "both, or neither",
        )
        _require(
            has_certificate or self.exporter_client_cafile == "",
            "metrics.exporter_client_cafile",
            f"{self.exporter_client_cafile} without metrics.exporter_certfile",
            "a certificate of the exporter beside it",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """How ranks talk to each other."""

    device: DeviceName = operational("auto")
    """auto: CUDA where there is a GPU for every rank of the node."""
    timeout_seconds: float = operational(300.0)
    """How long a rank may stand still in training: then the job ends, and says which and where."""
    save_timeout_seconds: float = operational(1800.0)
    """The same for what rank 0 does alone while the others wait, such as saving."""
    bucket_bytes: int = 8 << 20
    """Gradients are averaged in buckets of this size (it decides the order of additions)."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "save_timeout_seconds"):
            _require_duration(f"distributed.{name}", getattr(self, name))
        _require(self.bucket_bytes > 0, "distributed.bucket_bytes", self.bucket_bytes, "above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    distributed: DistributedConfig = DistributedConfig()
    epochs: float = 10.0
    """Length of the run; the schedule spans it."""
    global_batch_size: int = 128
    """Samples of one step, over all ranks and micro-batches."""
    accumulation_steps: int = operational(1)
    """Micro-batches a rank adds up in one step."""
    precision: PrecisionChoice = "fp32"
    """Type of the network's arithmetic; weights and the optimizer's state are fp32 always. auto:
    bf16 where all devices have instructions for it, else fp16 on GPUs and fp32 on CPUs; it is
    decided when a run begins, and kept."""
    compile: Compilation = operational("auto")
    """Fuse the network's small operations with torch.compile; auto: on GPUs."""
    not_learning_after_samples: int = operational(1_000_000)
    """An alarm rings if the loss is still that of guessing once so many samples have been seen."""
    seed: int = 0
    """Of everything random: initialisation, order, augmentation, dropout."""
    log_every_steps: int = operational(50)
    """Steps between two lines on the console and two `train` events."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0 and math.isfinite(self.epochs), "epochs", self.epochs, "above 0")
        for name in (
            *("global_batch_size", "accumulation_steps", "log_every_steps"),
            "not_learning_after_samples",
        ):
            _require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")
        _require(
            not self.data.is_resident or not self.augment.scales_crops,
            "data.reader",
            "resident with augment.crop_place random_resized",
            "another reader: a resident image can be cropped, but not scaled",
        )
        _require(
            self.evaluation.views == 1 or self.augment.crop_pixels is not None,
            "evaluation.views",
            f"{self.evaluation.views} without augment.crop_pixels",
            "1, or a crop smaller than the image",
        )
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 or more, below 2**63")
        self._check_effects()

    def _check_effects(self) -> None:
        """What has no effect has its default: the saved config shall not mislead."""
        values = {name: value for name, _, value in flatten(self)}
        for name, entry in FIELDS.items():
            _require(
                values[name] == entry.default or why_idle(name, values, FIELDS) is None,
                name,
                show(values[name]),
                f"{show(entry.default)}: it has an effect only with {describe_needs(entry)}",
            )

    @property
    def resolved_precision(self) -> Precision:
        """Raises `RuntimeError` before `pipeline.optim.precision.resolve` has decided on `auto`."""
        if self.precision == "auto":
            raise RuntimeError("the precision is auto: resolve it before anything is computed")
        return self.precision


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every leaf of nested dataclasses: dotted name, field and value."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry, value


def is_operational(entry: dataclasses.Field[Any]) -> bool:
    """Whether a run may be resumed with another value of the field."""
    return bool(entry.metadata.get("operational", False))


def _leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.default):
            yield from _leaves(entry.default, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


FIELDS = dict(_leaves(Config))
"""Every field of a config that is no group, by its dotted name."""
