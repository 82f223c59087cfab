"""Runs that begin with given weights: on any number of ranks, in both layouts, stopped or not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.export.__main__ import main as export_main
from pipeline.ranks.failure import RankFailure
from pipeline.run.directory import RunDirectory
from pipeline.trained.network import open_trained
from pipeline.trained.stored import sha256_of_weights
from pipeline.trained.weights import read_weights
from tests.integration.test_columns import finish as finish_columns
from tests.integration.test_columns import train as train_columns
from tests.integration.test_fork import shards_of_two_classes
from tests.integration.training import (
    assert_same_state,
    finish,
    losses,
    make_large_shards,
    newest_state,
    rows,
    train_here,
)

STEADY = ("--schedule.name", "constant", "--schedule.warmup_ratio", 0, "--precision", "fp32")
SMALL = (*STEADY, "--epochs", 1, "--global_batch_size", 16)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of two classes."""
    return shards_of_two_classes(tmp_path_factory.mktemp("two"))


def weights_of(run: Path) -> Weights:
    weights: Weights = newest_state(run)["model"]
    return weights


def config_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "config.json").read_text())
    return content


def unequal(one: Weights, other: Weights) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_a_run_begins_with_a_run_s_weights_and_a_new_last_layer(
    trained: Path, two: Path, tmp_path: Path
) -> None:
    """The same weights on two ranks, of which only rank 0 reads them; frozen ones stay."""
    run, source = tmp_path / "run", shutil.copytree(trained, tmp_path / "source", symlinks=True)
    options = (*SMALL, "--init", f"{source}@16", "--freeze", "conv")
    job = finish(2, two, run, *options, "--checkpoint.every_epochs", 0.5, "--max-steps", 1)
    given = weights_of(source)
    path = (source / "checkpoints/step-00000016").resolve()
    sha256 = sha256_of_weights(given)
    assert (
        f"begins with the weights of {path} (sha256 {sha256[:8]}…); classifier.6 is new, for 2 "
        "classes instead of 10\n"
    ) in job.outputs[0]
    content = config_of(run)
    assert content["initialized_from"] == {
        "source": f"{source}@16",
        "path": str(path),
        "weights_sha256": sha256,
        "new_layer": "classifier.6",
        "why_new": "for 2 classes instead of 10",
    }
    assert content["forked_from"] is None
    assert open_trained(str(run)).origin.began == content["initialized_from"]
    # It goes on when the source is gone, and remembers it
    shutil.rmtree(source)
    job = finish(2, two, run, *options, "--checkpoint.every_epochs", 0.5)
    assert "begins with" not in job.outputs[0]
    assert config_of(run)["initialized_from"] == content["initialized_from"]
    moved = {f"classifier.{layer}.{kind}" for layer in (0, 3, 6) for kind in ("weight", "bias")}
    found = weights_of(run)
    assert found["classifier.6.bias"].shape == (2,)
    assert unequal(given, found) == moved
    straight = tmp_path / "straight"
    shutil.copytree(trained, source, symlinks=True)
    finish(2, two, straight, *options, "--checkpoint.every_epochs", 0.5)
    assert_same_state(run, straight)


def test_a_run_and_its_export_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    """As files of weights alone, too; only those do not say of which classes they are."""
    export = tmp_path / "export"
    words = [str(trained), "--to", str(export), "--format", "safetensors,torch"]
    assert export_main(words) == 0
    sources = (trained, f"{trained}@16", export, export / "model.safetensors", export / "model.pt")
    found = [read_weights(str(source)) for source in sources]
    assert {given.sha256 for given in found} == {found[0].sha256}
    classes = found[0].class_names
    assert classes is not None
    assert [given.class_names for given in found] == [classes] * 3 + [None] * 2


def test_a_rate_of_nearly_nothing_leaves_what_was_given(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    """All of it, as the classes are the same; a fork of it then trains all layers."""
    run, fork = tmp_path / "run", tmp_path / "fork"
    path = tmp_path / "weights.pth"
    torch.save(weights_of(trained), path)
    tiny = ("--optim.learning_rate", 1e-30, "--optim.weight_decay", 0)
    options = (*SMALL, "--init", path, "--freeze", "conv", "--init.learning_rate_ratio", 0.5)
    assert train_here(shards, run, *options, *tiny) == 0
    assert not unequal(weights_of(trained), weights_of(run))
    (start,) = rows(run, "run")
    assert start["step"] == 0
    rates = newest_state(run)["optimizer"]["rates"]
    assert rates["weights"] == rates["last_weights"] / 2
    assert train_here(shards, fork, *SMALL, "--fork-from", run, "--epochs", 1.5) == 0
    assert len(unequal(weights_of(run), weights_of(fork))) == len(weights_of(run))


def test_one_column_a_rank_begins_with_its_part(scratch: Path) -> None:
    """What is computed is that of one rank with both, and frozen layers stay on each."""
    shards = make_large_shards(scratch / "large", 24, 7)
    source = scratch / "source"
    finish_columns(train_columns(1, shards, source, "--max-steps", 1))
    given = weights_of(source)
    convolutions, runs = {name for name in given if name.startswith("conv")}, {}
    for num_ranks, columns in ((1, "fused"), (4, "split")):
        run = runs[num_ranks] = scratch / f"{num_ranks}"
        options = ("--init", source, "--freeze", "conv", "--model.columns", columns)
        finish_columns(train_columns(num_ranks, shards, run, *options))
        moved = unequal(given, weights_of(run))
        assert convolutions.isdisjoint(moved)
        assert {"fc6.weight", "fc7.weight", "fc8.weight"} <= moved
    assert losses(runs[4]) == pytest.approx(losses(runs[1]), rel=1e-5)


def test_what_cannot_be_is_said_in_a_sentence(trained: Path, two: Path, tmp_path: Path) -> None:
    def sentence(*options: object, run: Path = tmp_path / "new") -> str:
        with pytest.raises((RankFailure, ValueError), match=r"\A[^\n]+\Z") as error:
            train_here(two, run, *SMALL, *options)
        return str(error.value)

    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK")
    assert re.match(r"--init\.freeze has no effect: it needs", sentence("--freeze", "conv"))
    assert "it needs init.weights, and init" in sentence("--init.learning_rate_ratio", 0.5)
    assert "is no trained network" in sentence("--init", tmp_path / "nothing")
    assert f"{broken} is damaged" in sentence("--init", broken)
    assert "(augment.normalize: was mean_std, is none)" in sentence(
        "--init", trained, "--augment.normalize", "none"
    )
    assert "--model.batch_norm_momentum has no effect: it needs init.weights left out or" in (
        sentence("--init", trained, "--freeze", "conv", "--model.batch_norm_momentum", 0.5)
    )
    assert not RunDirectory(tmp_path / "new").config.exists()
    assert "(init.weights: was '', is /" in sentence("--init", tmp_path, run=_run_of(two, tmp_path))


def _run_of(shards: Path, folder: Path) -> Path:
    assert train_here(shards, folder / "fresh", *SMALL) == 0
    return folder / "fresh"
