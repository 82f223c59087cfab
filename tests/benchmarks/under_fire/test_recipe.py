"""What the job under fire trains is a command of `pipeline.train`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.under_fire.recipe import GLOBAL_BATCH_SIZE, NUM_TRAIN, OPTIONS, SEED, command
from pipeline.config.order import check_waits
from pipeline.config.schema import values_of
from pipeline.train.command import parse_command


def test_the_options_are_those_of_training_and_their_waits_fit(tmp_path: Path) -> None:
    words = [*command(tmp_path / "shards"), "--run-dir", tmp_path / "run"]
    config = parse_command(list(map(str, words))).config
    values = values_of(config)
    assert {name: values[name] for name in OPTIONS} == OPTIONS
    assert (config.seed, config.log_every_steps) == (SEED, 1), "as the checker takes for granted"
    assert NUM_TRAIN % GLOBAL_BATCH_SIZE == 0, "each sample is in each epoch"
    assert check_waits(config) == []
