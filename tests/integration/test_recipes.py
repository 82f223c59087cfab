"""Every recipe of ImageNet's size takes a step on small shards, and its state can be evaluated."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from pipeline.config.recipes import RECIPES
from pipeline.ranks.stop import StopSignals
from pipeline.train.__main__ import train
from pipeline.train.command import parse_command
from pipeline.train.survival import Memory
from tests.integration.training import make_large_shards, newest_state, rows
from tests.pipeline.worlds import SINGLE

NUM_TRAIN, NUM_VAL = 8, 3


@pytest.fixture(scope="module")
def shards(scratch: Path) -> Path:
    return make_large_shards(scratch / "shards", NUM_TRAIN, NUM_VAL)


@pytest.mark.parametrize(
    "recipe", [name for name, make in RECIPES.items() if make().augment.crop_pixels]
)
def test_a_recipe_trains_and_evaluates(scratch: Path, shards: Path, recipe: str) -> None:
    run = scratch / recipe
    words = [recipe, "--data.shards", str(shards), "--run-dir", str(run), "--epochs", "1"]
    words += ["--global_batch_size", "4", "--metrics.enabled", "false", "--log_every_steps", "1"]
    words += ["--optim.learning_rate", "0.001"]  # the recipes' own are for larger batches
    signals = mock.Mock(spec=StopSignals, noted=None)
    assert train(parse_command(words), SINGLE, signals, Memory()) == 0
    losses = [row["loss"] for row in rows(run, "train")]
    assert len(losses) == NUM_TRAIN // 4
    assert all(0 < loss < 50 for loss in losses)
    (row,) = rows(run, "eval")
    assert (row["seen"], row["expected"]) == (NUM_VAL, NUM_VAL)
    assert newest_state(run)["progress"]["step"] == NUM_TRAIN // 4
