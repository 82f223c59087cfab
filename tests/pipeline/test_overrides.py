"""The command line's way into the config, and the sentences for what cannot be."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from pipeline.config import Config, OptimConfig, ScheduleConfig, flatten
from pipeline.overrides import apply_overrides, describe_fields
from pipeline.recipes import RECIPES

FIELDS = [name for name, _, _ in flatten(Config())]


def field_of(config: Config, name: str) -> Any:
    return {dotted: value for dotted, _, value in flatten(config)}[name]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--epochs 2.5", "epochs", 2.5),
        ("--epochs=3", "epochs", 3.0),
        ("--global_batch_size 1_024", "global_batch_size", 1024),
        ("--global-batch-size 256", "global_batch_size", 256),
        ("--optim.learning_rate 1e-3", "optim.learning_rate", 1e-3),
        ("--optim.name adam", "optim.name", "adam"),
        ("--optim.clip_norm 2", "optim.clip_norm", 2.0),
        ("--optim.nesterov TRUE", "optim.nesterov", True),
        ("--data.drop_last=false", "data.drop_last", False),
        ("--data.shards '/a b=c'", "data.shards", "/a b=c"),
        ("--data.shards=--odd", "data.shards", "--odd"),
        ("--schedule.step_epochs 30,60.5", "schedule.step_epochs", (30.0, 60.5)),
        ("--seed 1 --seed 2", "seed", 2),
    ],
)
def test_a_field_is_replaced(arguments: str, name: str, value: object) -> None:
    config = Config()
    found = apply_overrides(config, shlex.split(arguments))
    assert field_of(found, name) == value
    assert type(field_of(found, name)) is type(value)
    others = [other for other in FIELDS if other != name]
    assert [field_of(found, other) for other in others] == [
        field_of(config, other) for other in others
    ]


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_an_optional_field_is_emptied(word: str) -> None:
    config = Config(optim=OptimConfig(clip_norm=1.0))
    assert apply_overrides(config, ["--optim.clip_norm", word]).optim.clip_norm is None


def test_a_tuple_is_emptied() -> None:
    config = Config(schedule=ScheduleConfig(step_epochs=(1.0,)))
    assert apply_overrides(config, ["--schedule.step_epochs", ""]).schedule.step_epochs == ()


def test_no_arguments_change_nothing() -> None:
    assert apply_overrides(Config(), []) == Config()


def test_values_are_checked_together_and_not_one_by_one() -> None:
    """The first is not possible without the second."""
    arguments = "--schedule.name step --schedule.step_epochs 5"
    config = apply_overrides(Config(), shlex.split(arguments))
    assert config.schedule.step_epochs == (5.0,)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--epochs many", "--epochs is 'many'; expected a number"),
        ("--epochs inf", "--epochs is 'inf'; expected a finite number"),
        ("--optim.learning_rate nan", "--optim.learning_rate is 'nan'; expected a finite number"),
        ("--seed 1.5", "--seed is '1.5'; expected a whole number"),
        ("--optim.clip_norm big", "--optim.clip_norm is 'big'; expected a number"),
        ("--schedule.step_epochs 3;5", "--schedule.step_epochs is '3;5'; expected a number"),
        ("--data.drop_last yes", "--data.drop_last is 'yes'; expected true or false"),
        ("--optim.name lion", "--optim.name is 'lion'; expected one of sgd, adam, adamw"),
        ("--precision fp8", "--precision is 'fp8'; expected one of fp32, bf16, fp16"),
        ("--epochs", "--epochs has no value; expected --epochs VALUE"),
        ("--data.shards --seed 3", "--data.shards has no value; expected --data.shards VALUE"),
        ("train", "unexpected argument 'train'; expected --FIELD VALUE"),
        ("--seed 1 2", "unexpected argument '2'; expected --FIELD VALUE"),
        (
            "--learning_rate 1",
            "unknown option --learning_rate; did you mean --optim.learning_rate? --help lists",
        ),
        (
            "--every_epochs 1",
            "did you mean --evaluation.every_epochs or --checkpoint.every_epochs?",
        ),
        ("--optim.learning_rat 1", "did you mean --optim.learning_rate?"),
        ("--optim 1", "unknown option --optim; "),
        ("--xyzzy 1", "unknown option --xyzzy; --help lists them all"),
        ("--epochs 0", "epochs is 0.0; expected above 0"),
        (
            "--schedule.warmup_ratio 1",
            "schedule.warmup_ratio is 1.0; expected 0 or more, below 1",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(arguments: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        apply_overrides(Config(), shlex.split(arguments))
    assert sentence in str(error.value)


def described_flags(config: Config) -> list[str]:
    """The flags as `--help` shows them, as a shell would split them."""
    lines = [line for line in describe_fields(config).splitlines() if line.startswith("  --")]
    return shlex.split(" ".join(re.sub(r"  \(.*\)$", "", line) for line in lines))


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_flags_that_give_the_recipe(name: str) -> None:
    assert apply_overrides(Config(), described_flags(RECIPES[name]())) == RECIPES[name]()


def test_help_explains_every_field() -> None:
    lines = describe_fields(Config()).splitlines()
    flags, explanations = lines[::2], lines[1::2]
    assert [line.split()[0] for line in flags] == [f"--{name}" for name in FIELDS]
    for explanation in explanations:
        assert re.fullmatch(r" {8}[A-Za-z0-9].*\.", explanation)


def test_help_lists_the_choices() -> None:
    text = describe_fields(Config())
    assert "  --optim.name sgd  (sgd | adam | adamw)\n" in text
    assert "  --augment.flip none  (none | random | alternating)\n" in text
    assert "  --optim.clip_norm none\n" in text
    assert "  --schedule.step_epochs ''\n" in text
    assert "  --data.drop_last true\n" in text
