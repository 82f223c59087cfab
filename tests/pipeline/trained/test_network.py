"""A trained network is opened by whatever names it; hostile and damaged files are refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.shard_set.files import sha256_of
from pipeline.run import checkpoint
from pipeline.run.torch_file import load_tensors
from pipeline.trained.network import open_trained
from tests.formats.fixtures import RUN_SHARDS, VERSIONS, unpack_run

VERSION = VERSIONS[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of an older version, which names a shard set that is there."""
    run = unpack_run(VERSION, tmp_path)
    for path in [run / "config.json"]:
        saved = json.loads(path.read_bytes())
        saved["config"]["data"]["shards"] = str(VERSION / "shards" / RUN_SHARDS)
        path.write_text(json.dumps(saved))
    for path in checkpoint.paths(run / "checkpoints"):
        change(path, with_shards(VERSION / "shards" / RUN_SHARDS))
    return run


def change(path: Path, changed: Callable[[dict[str, Any]], object]) -> None:
    """Save the checkpoint with another state, under a hash that fits."""
    state = checkpoint.load(path)
    changed(state)
    checkpoint.save(path.parent, checkpoint.step_of(path), state)


def with_shards(shards: Path) -> Callable[[dict[str, Any]], None]:
    def changed(state: dict[str, Any]) -> None:
        saved = json.loads(state["settings"])
        saved["config"]["data"]["shards"] = str(shards)
        state["settings"] = json.dumps(saved)

    return changed


def newest(run: Path) -> Path:
    return checkpoint.paths(run / "checkpoints")[0]


def sentence(source: object) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        open_trained(str(source))
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_name_of_it_leads_to_the_same_network(run: Path) -> None:
    path = newest(run)
    step = checkpoint.step_of(path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = open_trained(str(run))
    assert torch.equal(torch.get_rng_state(), before), "opening draws nothing"
    assert not network.model.training
    assert network.origin.step == step
    assert network.origin.recipe == "cifar10"
    assert [row.by for row in network.origin.evaluations][:1] == ["train"]
    assert {row.step for row in network.origin.evaluations} == {step}
    state = checkpoint.load(path)["model"]
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    for source in (f"{run}@newest", f"{run}@{step}", path, f"{run}/"):
        assert open_trained(str(source)).origin == network.origin
    best = open_trained(f"{run}@best").origin
    assert best.step == checkpoint.step_of((run / "checkpoints/best").resolve())
    other = checkpoint.paths(run / "checkpoints")[1]
    assert open_trained(str(other)).origin.weights_sha256 != network.origin.weights_sha256


def test_it_needs_the_shard_set_only_without_data_json(run: Path, tmp_path: Path) -> None:
    path = newest(run)
    change(path, with_shards(tmp_path / "gone"))
    assert "class names and colour statistics are in no data.json" in sentence(run)
    alone = tmp_path / "alone" / path.name
    shutil.copytree(path, alone)
    assert str(tmp_path / "gone") in sentence(alone)
    change(path, with_shards(VERSION / "shards" / "pixels"))
    assert "is not the shard set that was trained on" in sentence(run)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_checkpoint_that_would_execute_code_is_refused(run: Path, tmp_path: Path) -> None:
    path, proof = newest(run), tmp_path / "executed"
    torch.save({"model": Bomb(proof)}, path / "state.pt")
    facts = json.loads((path / "checkpoint.json").read_bytes())
    facts["num_bytes"] = (path / "state.pt").stat().st_size
    facts["sha256"] = sha256_of(path / "state.pt")
    (path / "checkpoint.json").write_text(json.dumps(facts))
    said = sentence(path)
    assert "is not a file of tensors and plain values alone, and nothing in it was executed" in said
    assert "weights_only" not in said
    assert not proof.exists()
    (tmp_path / "bare").write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(ValueError, match=r"no file that torch\.save wrote"):
        load_tensors(tmp_path / "bare")
    assert not proof.exists()


def test_zips_with_tricks_are_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "whole.pt", tmp_path / "packed.pt"
    torch.save({"weight": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w") as other:
        for entry in whole.infolist():
            other.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed or overlapping entries"):
        load_tensors(packed)
    for length in (0, 100, path.stat().st_size // 2, path.stat().st_size - 1):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"is damaged, or no file that torch\.save wrote"):
            load_tensors(cut)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "of another shape": (
        lambda state: state["model"].update({"classifier.0.bias": torch.zeros(3)}),
        "do not fit this network",
    ),
    "of another name": (
        lambda state: state["model"].update({"other": torch.zeros(3)}),
        "do not fit this network",
    ),
    "NaN": (
        lambda state: state["model"]["classifier.0.bias"].fill_(float("nan")),
        "classifier.0.bias has values that are not finite; choose weights of an earlier step",
    ),
    "no tensor": (
        lambda state: state["model"].update({"classifier.0.bias": [1.0]}),
        "is not a state dict: 'classifier.0.bias' is of type list",
    ),
    "sparse": (
        lambda state: state["model"].update({"classifier.0.bias": torch.zeros(512).to_sparse()}),
        "expected dense floats",
    ),
    "a float of 8 bits": (
        lambda state: state["model"].update(
            {"classifier.0.bias": torch.zeros(512).to(torch.float8_e4m3fn)}
        ),
        "expected dense floats",
    ),
    "no weights": (lambda state: state.update(model={}), "holds no weights"),
    "no settings": (lambda state: state.pop("settings"), "is not the checkpoint of a run"),
    "settings that are no JSON": (
        lambda state: state.update(settings="{"),
        "is not the checkpoint",
    ),
    "a recipe that is no text": (
        lambda state: state.update(
            settings=json.dumps(json.loads(state["settings"]) | {"recipe": 5})
        ),
        "is not the checkpoint of a run",
    ),
    "an infinite step": (
        lambda state: state["progress"].update(step=math.inf),
        "is not the checkpoint of a run",
    ),
    "no progress": (lambda state: state.update(progress=None), "is not the checkpoint of a run"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_cannot_be_one_is_refused(run: Path, name: str) -> None:
    changed, expected = CHANGES[name]
    change(newest(run), changed)
    said = sentence(run)
    assert expected in said
    assert str(newest(run)) in said


def test_what_holds_no_state_is_refused(run: Path) -> None:
    path = newest(run)
    checkpoint.save(path.parent, checkpoint.step_of(path), torch.zeros(3))  # type: ignore[arg-type]
    assert "state.pt holds no state, but a Tensor" in sentence(path)
    (path / "checkpoint.json").write_text("[" * 100_000)
    assert "is damaged: checkpoint.json is not as written" in sentence(path)


def test_what_is_no_network_is_refused(run: Path, tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path, run / "config.json", f"{tmp_path}@best"):
        assert f"{source} is no trained network: expected a run directory" in sentence(source)
    assert "no checkpoint '7': expected newest, best" in sentence(f"{run}@7")
    assert "empty" in sentence("")
    for path in checkpoint.paths(run / "checkpoints"):
        (path / "state.pt").write_bytes(b"")
    assert "every checkpoint in" in sentence(run)
