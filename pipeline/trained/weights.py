"""Weights that a run can begin with, from wherever they are, and whether they fit its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.files import path_option
from pipeline.config.model import MODELS, ModelConfig, ModelName
from pipeline.config.saved import differences, to_json
from pipeline.config.schema import Config
from pipeline.model.build import empty_model
from pipeline.run.torch_file import load_tensors
from pipeline.trained.exported import read_safetensors
from pipeline.trained.network import read_stored
from pipeline.trained.stored import Weights, checked_weights, sha256_of_weights

_DECIDES_WHAT_WEIGHTS_DO = frozenset(
    {"model.name", "model.response_norm", "model.dropout_form", "augment.normalize"}
)
"""Fields that a network must have as it had them when its weights were learned."""

_FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
"""Of files, where there is nothing of that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenWeights:
    """A state dict by a network's own names, which of `alexnet_2014` are torchvision's."""

    path: Path
    """Where they were read from."""
    tensors: Weights
    """On the CPU, finite."""
    sha256: str
    """See `sha256_of_weights`."""
    config: Config | None = None
    """Of the run that they are of; None: nothing is known of it."""
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """What of given weights a network begins with."""

    tensors: Weights
    """Floats in fp32, contiguous."""
    new_layer: str | None
    """The last layer if it is left out."""
    why_new: str | None


def read_weights(source: str) -> GivenWeights:
    """The weights that `--init` names; nothing in a file is executed.

    Raises `ValueError` with one sentence if there are none, or they are damaged or not finite, and
    `OSError` if a file cannot be read.
    """
    path = path_option(source)
    if path.is_dir() or not (path.is_file() or path.suffix in _FILE_SUFFIXES):
        stored = read_stored(source)
        return GivenWeights(
            path=stored.path,
            tensors=stored.weights,
            sha256=stored.origin.weights_sha256,
            config=stored.config,
            class_names=stored.dataset.class_names,
        )
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    else:
        tensors = checked_weights(load_tensors(path), path)
    return GivenWeights(path=path, tensors=tensors, sha256=sha256_of_weights(tensors))


def beginning_with(given: GivenWeights, config: Config, class_names: Sequence[str]) -> Beginning:
    """What a network of `config` that tells these classes apart begins with.

    The last layer is left out if it is for another number of classes, or is known to be for other
    ones. Raises `ValueError` if the rest does not fit, or would be given other inputs.
    """
    path = given.path
    if given.config is not None:
        found = [
            difference
            for difference in differences(config, to_json(given.config))
            if difference.partition(":")[0] in _DECIDES_WHAT_WEIGHTS_DO
        ]
        if found:
            raise ValueError(
                f"the weights of {path} are of a network that computes something else "
                f"({'; '.join(found)}): give the options that it was trained with"
            )
    model = empty_model(config.model, len(class_names))
    expected, last = model.state_dict(), model.last_layer
    if (wrong := _difference(given.tensors, expected, last)) is not None:
        other = _network_of(given.tensors)
        hint = "" if other is None else f"those of {other}, and "
        raise ValueError(
            f"the weights of {path} are {hint}not those of {config.model.name} ({wrong}): choose "
            "the network by --model.name, or give other weights"
        )
    num_classes, why_new = len(given.tensors[f"{last}.bias"]), None
    if num_classes != len(class_names):
        why_new = f"for {len(class_names)} classes instead of {num_classes}"
    elif given.class_names not in (None, tuple(class_names)):
        why_new = "as its classes have other names"
    return Beginning(
        tensors={
            key: given.tensors[key].to(tensor.dtype).contiguous()
            for key, tensor in expected.items()
            if why_new is None or key not in _tensors_of(last)
        },
        new_layer=None if why_new is None else last,
        why_new=why_new,
    )


def _tensors_of(last: str) -> tuple[str, str]:
    return f"{last}.weight", f"{last}.bias"


def _difference(found: Weights, expected: Weights, last: str) -> str | None:
    """Where the names or shapes differ, the number of classes aside; None: nowhere."""
    for key in expected.keys() - found.keys():
        return f"{key} is missing"
    for key in found.keys() - expected.keys():
        return f"{key[:60]!r} is unknown there"
    num_classes = found[f"{last}.weight"].shape[:1]
    for key, tensor in expected.items():
        shape = tensor.shape
        if key in _tensors_of(last):
            shape = num_classes + tensor.shape[1:]
        if found[key].shape != shape:
            return f"{key} is {_words(found[key].shape)}, expected {_words(shape)}"
    return None


def _words(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"


def _network_of(weights: Weights) -> ModelName | None:
    """The network that has weights of these names and shapes, for some number of classes."""
    for name in MODELS:
        model = empty_model(ModelConfig(name=name), 1)
        if _difference(weights, model.state_dict(), model.last_layer) is None:
            return name
    return None
