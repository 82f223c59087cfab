"""Exact evaluation, against a plain loop over the images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from data_prep.shard_set.manifest import manifest_sha256
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config, EvaluationConfig
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.open import open_data
from pipeline.evaluate import __main__ as evaluate_module
from pipeline.evaluate.shards import open_shards
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.settings import Settings
from pipeline.train.evaluation import (
    Evaluation,
    InexactEvaluation,
    evaluate,
    evaluation_line,
    evaluation_table,
    save_predictions,
)
from tests.pipeline.fake_run import make_images, write_shard_set
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE, fused, world_of_equals

NUM_SAMPLES = 101
NUM_CLASSES = 7
BLOCK_SIZE = 16
NORMALIZER = Normalizer(
    np.array((120.0, 110.0, 100.0)), np.array((60.0, 50.0, 40.0)), torch.device("cpu")
)


class Net(nn.Module):
    """With dropout and BatchNorm, whose part in evaluation is another one than in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.dense = nn.Linear(8 * 7 * 7, NUM_CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.dropout(self.norm(self.convolution(images))).flatten(1)
        logits: torch.Tensor = self.dense(features)
        return logits


class Fixed(nn.Module):
    """Gives each image of a batch the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self._logits = torch.tensor(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._logits.expand(len(images), -1)


def labels() -> npt.NDArray[np.int64]:
    return np.arange(NUM_SAMPLES, dtype=np.int64) * 5 % NUM_CLASSES


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "shards"
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    write_shard_set(path, make_images(labels()), labels(), names)
    return path


def run(
    world: World,
    shards: Path,
    model: nn.Module,
    block_size: int = BLOCK_SIZE,
    depth: int = 2,
) -> Evaluation:
    config = Config(
        data=DataConfig(shards=str(shards), prefetch_batches=depth),
        evaluation=EvaluationConfig(block_size=block_size),
    )
    with contextlib.ExitStack() as resources:
        data = open_data(config, world.device, resources)
        split = data.open_evaluation("val", 1, NORMALIZER)
        return evaluate(model, split, world, fused(world), step=12, epoch=1.2)


def run_in_memory(
    world: World, shards: Path, model: nn.Module, block_size: int
) -> list[Evaluation]:
    """Twice, and the shards are gone before."""
    config = Config(
        data=DataConfig(shards=str(shards), reader="resident"),
        evaluation=EvaluationConfig(block_size=block_size),
    )
    with contextlib.ExitStack() as resources:
        data, mesh = open_data(config, world.device, resources), fused(world)
        split = data.open_evaluation("val", 1, NORMALIZER).resident(world, mesh)
        for path in shards.glob("val-*.tar"):
            path.unlink(missing_ok=True)
        return [evaluate(model, split, world, mesh, step=12, epoch=1.2) for _ in range(2)]


@pytest.mark.parametrize("num_ranks", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("block_size", [16, 500])
def test_in_memory_it_finds_the_same_without_the_files(
    shards: Path, tmp_path: Path, block_size: int, num_ranks: int
) -> None:
    copied = shutil.copytree(shards, tmp_path / "copied")
    expected = run(SINGLE, shards, Net(), block_size)
    arguments = copied, Net(), block_size
    if num_ranks == 1:
        found = [run_in_memory(SINGLE, *arguments)]
    else:
        found = call_on_ranks(num_ranks, run_in_memory, *arguments)
    evaluations = [one for of_rank in found for one in of_rank]
    assert len(evaluations) == 2 * num_ranks
    for one in evaluations:
        event = expected.event
        now = dataclasses.replace(one.event, time=event.time, seconds=event.seconds)
        assert now == event
        for name, values in expected.predictions.items():
            np.testing.assert_array_equal(one.predictions[name], values)


@pytest.mark.parametrize("block_size", [1, 16, 101, 500])
def test_it_counts_what_a_plain_loop_counts(shards: Path, block_size: int) -> None:
    model = Net()
    found = run(SINGLE, shards, model, block_size)
    model.eval()
    correct1 = correct5 = 0
    losses = []
    for image, label in zip(make_images(labels()), labels(), strict=True):
        pixels = (image.astype(np.float64) - (120, 110, 100)) / (60, 50, 40)
        row = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
        logits = model(row)[0].detach().double().numpy()
        order = np.argsort(-logits, kind="stable")
        correct1 += int(order[0] == label)
        correct5 += int(label in order[:5])
        losses.append(float(np.log(np.exp(logits).sum()) - logits[label]))
    event = found.event
    assert (event.seen, event.expected) == (NUM_SAMPLES, NUM_SAMPLES)
    assert (event.correct1, event.correct5) == (correct1, correct5)
    assert 0 < correct1 < correct5 < NUM_SAMPLES
    assert event.loss == pytest.approx(float(np.mean(losses)), rel=1e-5)
    np.testing.assert_allclose(found.predictions["losses"], losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.predictions["labels"], labels())
    assert (event.top1, event.top5) == (correct1 / NUM_SAMPLES, correct5 / NUM_SAMPLES)


def on_ranks(world: World, shards: Path) -> dict[str, Any]:
    result = run(world, shards, Net())
    return row_of(result.event) | {"seconds": 0, "time": 0} | result.predictions


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_any_number_of_ranks_finds_the_same_bits(shards: Path, size: int) -> None:
    """Eight are more than there are blocks."""
    expected = on_ranks(SINGLE, shards)
    for found in call_on_ranks(size, on_ranks, shards):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(found[name], value), name


def test_the_model_is_left_as_it_was(shards: Path) -> None:
    for training in (True, False):
        model = Net().train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        num_threads = torch.get_num_threads()
        run(SINGLE, shards, model)
        assert model.training is training
        assert torch.get_num_threads() == num_threads
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())


def test_a_sample_seen_twice_is_no_result(shards: Path) -> None:
    """Both ranks of this world bring the same samples: half of the split, twice."""
    with pytest.raises(InexactEvaluation, match=r"saw 106 samples, 53 different .*101 once"):
        run(world_of_equals(2, rank=0), shards, Net())


def test_the_order_is_the_logits_where_probabilities_are_0(shards: Path) -> None:
    found = run(SINGLE, shards, Fixed([300.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.predictions["topk_classes"].tolist() == [[0, 6, 5, 4, 3]] * NUM_SAMPLES
    assert found.predictions["topk_probabilities"].tolist() == [[1, 0, 0, 0, 0]] * NUM_SAMPLES
    assert found.event.correct5 == int(np.isin(labels(), [0, 6, 5, 4, 3]).sum())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_never_right(shards: Path, broken: float) -> None:
    logits = [0.0] * NUM_CLASSES
    logits[0] = broken
    found = run(SINGLE, shards, Fixed(logits)).event
    assert (found.correct1, found.correct5, found.seen) == (0, 0, NUM_SAMPLES)
    assert math.isnan(found.loss)


def test_a_logit_that_rules_out_a_class_is_a_number(shards: Path) -> None:
    logits = [0.0, 1.0] + [-math.inf] * (NUM_CLASSES - 2)
    found = run(SINGLE, shards, Fixed(logits)).event
    assert found.correct1 == int((labels() == 1).sum())
    assert found.loss == math.inf


def test_fewer_classes_than_five(tmp_path: Path) -> None:
    few = np.arange(10, dtype=np.int64) % 3
    write_shard_set(tmp_path / "shards", make_images(few), few, ["a", "b", "c"])
    found = run(SINGLE, tmp_path / "shards", Fixed([0.0, 2.0, 1.0]))
    event = found.event
    assert (event.correct1, event.correct5, event.top5, event.seen) == (3, None, None, 10)
    assert "top-5" not in evaluation_line(event)
    assert "top-5" not in evaluation_table(event)
    assert found.predictions["topk_classes"].shape == (10, 3)


def test_predictions_are_saved_whole(shards: Path, tmp_path: Path) -> None:
    result, directory = run(SINGLE, shards, Net()), RunDirectory(tmp_path)
    save_predictions(directory, result)
    with np.load(directory.predictions("val")) as saved:
        assert saved["step"] == 12
        assert set(saved) == {
            "format_version",
            "step",
            "views",
            "manifest_sha256",
            *result.predictions,
        }
        for name, values in result.predictions.items():
            np.testing.assert_array_equal(saved[name], values)
    assert [path.name for path in directory.predictions("val").parent.iterdir()] == ["val.npz"]


def test_an_event_is_json(shards: Path) -> None:
    event = run(SINGLE, shards, Net()).event
    row = json.loads(json.dumps(row_of(event)))
    assert (row["kind"], row["step"], row["epoch"], row["by"]) == ("eval", 12, 1.2, "train")
    assert (row["split"], row["views"], row["own_shards"]) == ("val", 1, True)
    assert row["shard_set"] == "generated shapes"
    assert event_of(row) == event


def test_a_directory_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_module.main(["--run-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is not a run directory: it has no config.json; "
        "give the --run-dir of a training run\n"
    )


def test_a_command_that_only_a_run_names_is_not_run(shards: Path, tmp_path: Path) -> None:
    """The run may be anybody's; a user who knows the command gives it again."""
    url, other = f"pipe:touch {tmp_path}/ran; cat {shards}/{{}}", tmp_path / "other"
    write_shard_set(other, make_images(labels()[:50]), labels()[:50], ["a"] * NUM_CLASSES)
    data = DataConfig(shards=url, reader="remote", cache_dir=str(tmp_path / "cache"))
    sha256 = manifest_sha256(shards)
    settings = Settings(recipe="cifar10", config=Config(data=data), manifest_sha256=sha256)

    def open_own(given: str | None) -> str:
        run, device = RunDirectory(tmp_path / "run"), torch.device("cpu")
        with contextlib.ExitStack() as resources:
            _, own = open_shards(run, settings, given, None, device, resources)
            return own.manifest_sha256

    for given in (None, str(other)):
        with pytest.raises(ValueError, match=r"is a command, .* if you know it, give it as --sha"):
            open_own(given)
    assert not (tmp_path / "ran").exists()
    assert open_own(url) == sha256
    assert (tmp_path / "ran").exists()
