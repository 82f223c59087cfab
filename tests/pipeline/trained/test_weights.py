"""Weights to begin with: from every kind of file, and what of them fits."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config.augment import AugmentConfig
from pipeline.config.init import InitConfig
from pipeline.config.model import MODELS, ModelConfig, ModelName
from pipeline.config.schema import Config
from pipeline.model.build import build_model, empty_model, load_weights
from pipeline.trained.stored import sha256_of_weights
from pipeline.trained.weights import GivenWeights, beginning_with, read_weights

CIFAR = Config(model=ModelConfig(name="alexnet_cifar"))
FIVE, SIX = tuple("abcde"), tuple("abcdef")

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of five classes."""
    torch.manual_seed(1)
    return build_model(CIFAR.model, 5, (32, 32)).state_dict()


@pytest.fixture(params=["w.safetensors", "w.pth"])
def path(request: pytest.FixtureRequest, weights: Weights, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    save(weights, path)
    return path


def save(weights: Weights, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)


def given(weights: Weights, path: str = "/given") -> GivenWeights:
    return GivenWeights(path=Path(path), tensors=weights, sha256="")


def sentence(weights: Weights, config: Config = CIFAR, names: tuple[str, ...] = FIVE) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        beginning_with(given(weights), config, names)
    return str(error.value)


def test_a_state_dict_is_read_from_either_kind_of_file(path: Path, weights: Weights) -> None:
    found = read_weights(str(path))
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], weights[name]) for name in weights)
    assert found.sha256 == sha256_of_weights(weights)
    assert found.config is None


def test_all_of_them_are_loaded_where_the_classes_are_as_many(weights: Weights) -> None:
    """In fp32, whatever type and order of memory they had."""
    stored = {
        name: tensor.to(torch.bfloat16, memory_format=torch.channels_last)
        if tensor.ndim == 4
        else tensor
        for name, tensor in weights.items()
    }
    begun = beginning_with(given(stored), CIFAR, FIVE)
    assert begun.new_layer is None
    model = build_model(CIFAR.model, 5, (32, 32))
    load_weights(model, begun.tensors, None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype)), name
    assert all(tensor.is_contiguous() for tensor in begun.tensors.values())


def test_the_last_layer_begins_anew_where_the_classes_are_others(weights: Weights) -> None:
    begun = beginning_with(given(weights), CIFAR, SIX)
    assert (begun.new_layer, begun.why_new) == ("classifier.6", "for 6 classes instead of 5")
    assert weights.keys() - begun.tensors.keys() == {"classifier.6.weight", "classifier.6.bias"}
    model = build_model(CIFAR.model, 6, (32, 32))
    before = model.state_dict()["classifier.6.weight"].clone()
    load_weights(model, begun.tensors, None, fresh=begun.new_layer)
    after = model.state_dict()
    assert torch.equal(after["classifier.6.weight"], before)
    assert all(torch.equal(after[name], begun.tensors[name]) for name in begun.tensors)
    named = dataclasses.replace(given(weights), class_names=FIVE)
    assert beginning_with(named, CIFAR, FIVE).new_layer is None
    assert beginning_with(named, CIFAR, FIVE[::-1]).why_new == "as its classes have other names"


@pytest.mark.parametrize("name", MODELS)
def test_another_network_s_weights_are_known_by_their_shapes(name: ModelName) -> None:
    other = next(one for one in MODELS if one != name)
    with torch.device("meta"):
        found = {
            key: torch.empty(tensor.shape)
            for key, tensor in empty_model(ModelConfig(name=name), 7).state_dict().items()
        }
    assert f"the weights of /given are those of {name}, and not those of {other} (" in (
        sentence(found, Config(model=ModelConfig(name=other)))
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("features.4.bias"), "features.4.bias is missing"),
        (lambda w: w.update({"x" * 99: w["features.4.bias"]}), "'xxxxxxxx"),
        (
            lambda w: w.update({"features.4.weight": torch.zeros(96, 48, 5, 5)}),
            "features.4.weight is 96×48×5×5, expected 96×48×3×3",
        ),
        (
            lambda w: w.update({"classifier.6.weight": torch.zeros(5, 9)}),
            "classifier.6.weight is 5×9, expected 5×256",
        ),
        (
            lambda w: w.update({"classifier.6.bias": torch.zeros(4)}),
            "classifier.6.bias is 4, expected 5",
        ),
        (
            lambda w: w.update({"classifier.6.bias": torch.zeros(())}),
            "classifier.6.bias is one number, expected 5",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[Weights], object], said: str, weights: Weights
) -> None:
    changed = dict(weights)
    change(changed)
    found = sentence(changed)
    assert said in found
    assert "not those of alexnet_cifar" in found


def test_weights_that_learned_from_other_inputs_are_refused(weights: Weights) -> None:
    """Values would be other by a factor of 60, and nothing would tell."""
    plain = Config(model=CIFAR.model, augment=AugmentConfig(normalize="none"))
    known = dataclasses.replace(given(weights), config=plain)
    with pytest.raises(ValueError, match=r"\(augment\.normalize: was none, is mean_std\)"):
        beginning_with(known, CIFAR, FIVE)
    faster = dataclasses.replace(plain, epochs=3, init=InitConfig(weights="/x", freeze="conv"))
    assert beginning_with(known, faster, FIVE).new_layer is None


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        read_weights(str(path))
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_hold_something_else_are_refused(path: Path, weights: Weights) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged" in refused(path)
    path.write_bytes(b"")
    assert "is damaged" in refused(path)
    for value in (math.nan, math.inf):
        save(weights | {"features.4.bias": torch.full((96,), value)}, path)
        assert "features.4.bias has values that are not finite" in refused(path)
    save({"n": torch.zeros(3, dtype=torch.bool)}, path)
    assert "expected dense floats" in refused(path)


class Bomb:
    """Executed when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_file_that_would_execute_code_does_not(tmp_path: Path, weights: Weights) -> None:
    path, proof = tmp_path / "w.pth", tmp_path / "executed"
    torch.save(dict(weights) | {"bomb": Bomb(proof)}, path)
    assert "nothing in it was executed" in refused(path)
    assert not proof.exists()


def test_a_file_that_is_larger_inside_than_outside_is_refused(tmp_path: Path) -> None:
    packed, stretched = tmp_path / "packed.pth", tmp_path / "stretched.pth"
    torch.save({"w": torch.zeros(1 << 20)}, stretched)
    with zipfile.ZipFile(stretched) as old, zipfile.ZipFile(packed, "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed or overlapping entries" in refused(packed)
    torch.save({"w": torch.zeros(1).expand(1 << 62)}, stretched)
    assert "w is larger than what is stored of it" in refused(stretched)


def test_what_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    assert "is no trained network: expected a run directory" in refused(tmp_path)
    assert "is no trained network" in refused(tmp_path / "missing")
    for name in ("alexnet.pth", "model.pt", "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            read_weights(str(tmp_path / name))
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "nested.pt")
    assert "is not a state dict: 'model' is of type dict" in refused(tmp_path / "nested.pt")
    (tmp_path / "text.pth").write_text("hello")
    assert "no file that torch.save wrote" in refused(tmp_path / "text.pth")
