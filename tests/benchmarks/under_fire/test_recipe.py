"""What the job under fire trains is a command of `pipeline.train`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.under_fire.recipe import (
    GLOBAL_BATCH_SIZE,
    NUM_TRAIN,
    OPTIONS,
    SEED,
    command,
    options_of,
)
from pipeline.config.order import check_waits
from pipeline.config.schema import values_of
from pipeline.train.command import parse_command


def test_the_options_are_those_of_training_and_their_waits_fit(tmp_path: Path) -> None:
    config = parse_command(command(tmp_path / "shards", tmp_path / "run", options_of([]))).config
    values = values_of(config)
    assert {name: values[name] for name in OPTIONS} == OPTIONS
    assert (config.seed, config.log_every_steps) == (SEED, 1), "as the checker takes for granted"
    assert NUM_TRAIN % GLOBAL_BATCH_SIZE == 0, "each sample is in each epoch"
    assert check_waits(config) == []


def test_options_are_added_and_replaced(tmp_path: Path) -> None:
    options = options_of(["--distributed.timeout_seconds", "2", "--checkpoint.keep", "3"])
    config = parse_command(command(tmp_path / "shards", tmp_path / "run", options)).config
    assert (config.distributed.timeout_seconds, config.checkpoint.keep) == (2, 3)
    assert options.keys() == OPTIONS.keys() | {"checkpoint.keep"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--checkpoint.keep"], "'--checkpoint.keep'; expected pairs"),
        (["checkpoint.keep", "3"], "expected pairs of an option and a value"),
        (["--checkpoint.keep", "0"], "checkpoint.keep is 0"),
    ],
)
def test_what_is_no_option_of_training_is_refused(
    words: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        command(tmp_path / "shards", tmp_path / "run", options_of(words))
