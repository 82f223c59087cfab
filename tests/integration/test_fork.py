"""Runs that become longer, and runs that begin where another one has got to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.config.command_line import with_values
from pipeline.config.model import ModelConfig
from pipeline.config.saved import from_json
from pipeline.config.schema import Config
from pipeline.data.order.partition import BatchPlan
from pipeline.optim.replica import Replica
from pipeline.ranks.failure import RankFailure
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import write_failure
from pipeline.run.settings import Settings
from pipeline.train.fork import fork
from tests.data_prep.raw_data import jpeg, run_cli
from tests.integration.training import (
    STEPS_PER_EPOCH,
    all_rows,
    assert_same_state,
    newest_state,
    rows,
    train_here,
    training,
)
from tests.pipeline.rank_jobs import Job
from tests.pipeline.worlds import SINGLE

STEADY = ("--schedule.name", "constant", "--schedule.warmup_ratio", 0, "--precision", "fp32")
"""A rate that no length changes."""


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs; all its checkpoints are there."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train_here(shards, run, *STEADY, "--epochs", 2, "--checkpoint.keep", 9) == 0
    return run


def config_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "config.json").read_text())
    return content


def test_a_longer_run_ends_with_the_bits_of_one_that_was_so_long_from_the_start(
    shards: Path, tmp_path: Path
) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    for run, epochs in ((whole, 2), (longer, 1), (longer, 2)):
        options = ("--metrics.enabled", "false", *STEADY, "--epochs", epochs)
        with Job(2, "pipeline.train", training(shards, run, *options)) as job:
            assert job.wait() == [0, 0], job.errors
    assert_same_state(longer, whole)
    assert [row["step"] for row in rows(longer, "train")] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert config_of(longer)["config"]["epochs"] == 2


def test_a_finished_run_is_known_before_its_data_are_opened(
    straight: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = shutil.copytree(shards, tmp_path / "without")
    for tar in without.glob("*.tar"):
        tar.unlink()
    size = RunDirectory(straight).events.stat().st_size
    assert train_here(without, straight, *STEADY, "--epochs", 2) == 0
    assert capsys.readouterr().out == "nothing to do: 16 steps are done\n"
    assert RunDirectory(straight).events.stat().st_size == size


@pytest.mark.parametrize(
    ("is_refused", "options", "outcome"),
    [
        (False, ("--epochs", 2), "completed"),
        (False, ("--epochs", 3, "--max-steps", 16), "stopped"),
        (True, ("--epochs", 2), "completed"),
        (True, ("--epochs", 3, "--max-steps", 16), "failed"),
    ],
)
def test_the_last_word_that_a_kill_left_out_is_written_by_the_same_command(
    is_refused: bool,
    options: tuple[object, ...],
    outcome: str,
    straight: Path,
    shards: Path,
    tmp_path: Path,
) -> None:
    """Once; also where another command was refused since then."""
    run = shutil.copytree(straight, tmp_path / "run", symlinks=True)
    (run / ".tmp-config.json-0a1b2c3d").touch()
    events = RunDirectory(run).events
    *killed, end = events.read_text().splitlines(keepends=True)
    assert json.loads(end)["kind"] == "end"
    events.write_text("".join(killed))
    if is_refused:
        write_failure(events, "no room")
    before = all_rows(run)
    for _ in range(2):
        assert train_here(shards, run, *STEADY, *options) == 0
    *others, last = all_rows(run)
    assert (last["kind"], last["step"], last["outcome"]) == ("end", 16, outcome)
    if outcome != "failed":
        assert others == before
        assert (last["epoch"], last["time"]) == (2, before[-1]["time"])
    assert not list(run.glob(".tmp-*"))


def test_a_fork_that_changes_nothing_computes_the_same(
    straight: Path, shards: Path, tmp_path: Path
) -> None:
    """Also when it is stopped on its way; then the source is not needed any more."""
    run = tmp_path / "run"
    source = shutil.copytree(straight, tmp_path / "source", symlinks=True)
    command = ("--fork-from", f"{source}@12", *STEADY, "--epochs", 2)
    assert train_here(shards, run, *command, "--max-steps", 14) == 0
    shutil.rmtree(source)
    assert train_here(shards, run, *command) == 0
    found, expected = newest_state(run), newest_state(straight)
    assert found["model"].keys() == expected["model"].keys()
    for name, weights in expected["model"].items():
        assert torch.equal(found["model"][name], weights), name
    first, second = rows(run, "run")
    path = checkpoint.path_of(RunDirectory(source).checkpoints, 12)
    assert (first["step"], first["resumed_from"], first["forked_from"]) == (12, None, str(path))
    assert (second["resumed_from"], second["forked_from"]) == (14, None)
    assert [row["step"] for row in rows(run, "train")] == [13, 14, 15, 16]
    assert config_of(run)["forked_from"] == {"source": f"{source}@12", "checkpoint": str(path)}


def test_a_fork_may_have_other_options(straight: Path, shards: Path, tmp_path: Path) -> None:
    """Twice as large batches, half as many steps an epoch: it goes on in the same epoch."""
    run = tmp_path / "run"
    options = ("--schedule.name", "cosine", "--optim.name", "adam", "--optim.learning_rate", 1e-4)
    command = ("--fork-from", straight, *options, "--global_batch_size", 48, "--epochs", 3)
    assert train_here(shards, run, *command) == 0
    (first,) = rows(run, "run")
    assert (first["step"], first["epoch"], first["target_steps"]) == (8, 2, 12)
    assert [row["step"] for row in rows(run, "train")] == [9, 10, 11, 12]
    assert config_of(run)["config"]["optim"]["name"] == "adam"


def plan_of_epoch(num_steps: int) -> BatchPlan:
    return BatchPlan(
        num_samples=num_steps,
        global_batch_size=1,
        num_replicas=1,
        accumulation_steps=1,
        drop_last=True,
    )


def test_a_fork_of_an_early_checkpoint_has_done_a_step(straight: Path) -> None:
    """Of larger batches it is less than half of one."""
    path = checkpoint.path_of(RunDirectory(straight).checkpoints, 4)
    state = checkpoint.load(path)
    config = with_values(from_json(config_of(straight)["config"]), {"global_batch_size": 240})
    settings = Settings(recipe="cifar10", config=config, manifest_sha256="")
    plan = plan_of_epoch(1)
    progress = fork(mock.Mock(spec=Replica), settings, 10, plan, 2, SINGLE, path)
    assert (state["progress"]["step"], progress.step) == (4, 1)


def test_what_cannot_go_on_says_what_can(straight: Path, shards: Path, tmp_path: Path) -> None:
    def sentence(*options: object, shards: Path = shards, run: Path = tmp_path / "new") -> str:
        with pytest.raises((RankFailure, ValueError)) as error:
            train_here(shards, run, *options)
        return str(error.value)

    fork = ("--fork-from", straight)
    assert "after epoch 2, and epochs is 2: the run goes on from there" in sentence(
        *fork, *STEADY, "--epochs", 2
    )
    assert (
        "distinguishes 10 classes, and the shard set has 2: fork with a shard set of as many"
        in (sentence(*fork, *STEADY, shards=shards_of_two_classes(tmp_path)))
    )
    assert "is not another run directory with checkpoints" in sentence("--fork-from", tmp_path)
    assert "no checkpoint '5': expected newest, best" in sentence("--fork-from", f"{straight}@5")
    assert "began with fresh weights, and --fork-from is" in sentence(
        *STEADY, "--epochs", 2, "--fork-from", tmp_path, run=straight
    )


def shards_of_two_classes(folder: Path) -> Path:
    for split, count in (("train", 16), ("val", 1)):
        for name in ("cat", "dog"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.jpg").write_bytes(jpeg(number, height=32, width=32))
    command = ("shard", "folder", "--input", folder / "images", "--output", folder / "two")
    assert run_cli(*command, "--workers", 1).returncode == 0
    return folder / "two"


def test_another_network_s_checkpoint_is_refused(straight: Path) -> None:
    path = checkpoint.paths(RunDirectory(straight).checkpoints)[0]
    config = Config(model=ModelConfig(name="alexnet_bn"))
    settings = Settings(recipe="imagenet", config=config, manifest_sha256="")
    replica = mock.Mock(spec=Replica)
    with pytest.raises(RankFailure, match="of the network alexnet_cifar, and "):
        fork(replica, settings, 10, plan_of_epoch(8), 80, SINGLE, path)
    assert not replica.method_calls
