"""The command line's way into the config, and the sentences for what cannot be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.command_line import _SYNONYMS, RUN_WORDS, parse_words, with_values
from pipeline.config.help import explanation, explanations, outline
from pipeline.config.marks import needs_of
from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.recipes import RECIPES
from pipeline.config.schema import FIELDS, Config, idle_fields, values_of


def overridden(config: Config, arguments: Sequence[str]) -> Config:
    """As a command of training has it."""
    return with_values(config, parse_words(arguments))


def field_of(config: Config, name: str) -> Any:
    return values_of(config)[name]


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
        ("--data.shards=--odd", "data.shards", f"{Path.cwd()}/--odd"),
        ("--data.shards=", "data.shards", ""),
        ("--init /a@best", "init.weights", "/a@best"),
        ("--init=a", "init.weights", f"{Path.cwd()}/a"),
        ("--schedule.conv1_step_epochs 30,60.5", "schedule.conv1_step_epochs", (30.0, 60.5)),
    ],
)
def test_a_field_is_replaced(arguments: str, name: str, value: object) -> None:
    config = Config()
    found = overridden(config, shlex.split(arguments))
    assert field_of(found, name) == value
    assert type(field_of(found, name)) is type(value)
    others = [other for other in FIELDS if other != name]
    assert [field_of(found, other) for other in others] == [
        field_of(config, other) for other in others
    ]


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_an_optional_field_is_emptied(word: str) -> None:
    config = Config(optim=OptimConfig(clip_norm=1.0))
    assert overridden(config, ["--optim.clip_norm", word]).optim.clip_norm is None


def test_a_tuple_is_emptied() -> None:
    config = Config(schedule=ScheduleConfig(conv1_step_epochs=(1.0,)))
    found = overridden(config, ["--schedule.conv1_step_epochs", ""])
    assert found.schedule.conv1_step_epochs == ()


def test_no_arguments_change_nothing() -> None:
    assert overridden(Config(), []) == Config()


def test_values_are_checked_together_and_not_one_by_one() -> None:
    """The first is not possible without the second."""
    arguments = "--schedule.name step --schedule.step_epochs 5"
    config = overridden(Config(), shlex.split(arguments))
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
        ("--optim.name adma", "expected one of sgd, adam, adamw; did you mean adam?"),
        ("--model.name alexnet2012", "; did you mean alexnet_2012?"),
        ("--precision fp8", "--precision is 'fp8'; expected one of auto, fp32, bf16, fp16"),
        ("--epochs", "--epochs has no value; expected --epochs VALUE"),
        ("--data.shards --seed 3", "--data.shards has no value; expected --data.shards VALUE"),
        ("train", "unexpected argument 'train'; expected --FIELD VALUE"),
        ("--seed 1 2", "unexpected argument '2'; expected --FIELD VALUE"),
        ("--epochs 0", "epochs is 0.0; expected above 0"),
        (
            "--schedule.warmup_ratio 1",
            "schedule.warmup_ratio is 1.0; expected 0 or more, below 1",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(arguments: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        overridden(Config(), shlex.split(arguments))
    assert sentence in str(error.value)


def described_flags(config: Config) -> list[str]:
    """The flags as `--help` shows them, as a shell would split them."""
    lines = [line for line in explanations(config).splitlines() if line.startswith("  --")]
    return shlex.split(" ".join(re.sub(r"  \(.*\)$", "", line) for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_flags_that_give_the_recipe(name: str) -> None:
    """All of those that have an effect in it: others would be refused."""
    config = RECIPES[name]()
    flags = described_flags(config)
    idle = {f"--{field}" for field in idle_fields(values_of(config))}
    pairs = zip(flags[::2], flags[1::2], strict=True)
    words = [word for flag, value in pairs if flag not in idle for word in (flag, value)]
    assert len(words) > len(idle) > 0
    assert overridden(Config(), words) == config


@pytest.mark.parametrize(
    ("recipe", "arguments", "sentence"),
    [
        (
            "alexnet_fast",
            "--schedule.step_epochs 30,60",
            "--schedule.step_epochs has no effect: it needs schedule.name step, and schedule.name "
            "is cosine; leave it out",
        ),
        (
            "cifar10",
            "--optim.beta1 0.8",
            "it needs optim.name adam or adamw, and optim.name is sgd",
        ),
        ("cifar10_blog", "--optim.momentum 0.9", "it needs optim.name sgd, and optim.name is adam"),
        (
            "cifar10_blog",
            "--optim.nesterov true",
            "--optim.nesterov has no effect: it needs optim.",
        ),
        (
            "cifar10",
            "--optim.momentum 0 --optim.nesterov false",
            "optim.momentum above 0, and opti",
        ),
        ("cifar10", "--optim.momentum_form velocity", "needs optim.nesterov false, and optim.nest"),
        (
            "cifar10",
            "--schedule.factor 0.5",
            "schedule.name step or plateau or schedule.conv1_step",
        ),
        (
            "cifar10",
            "--schedule.name constant --schedule.biases constant",
            "--schedule.biases has no effect: it needs schedule.name cosine or linear or step or "
            "dexp or plateau or schedule.biases halfway; leave it out",
        ),
        ("alexnet_2012", "--augment.crop_min_area 0.1", "augment.crop_place random_resized, and "),
        (
            "cifar10",
            "--augment.crop_min_area 0.1",
            "it needs augment.crop_pixels, and augment.crop",
        ),
        (
            "alexnet_2012",
            "--augment.shift_pixels 2",
            "it needs augment.crop_pixels none, and augme",
        ),
        (
            "cifar10",
            "--augment.color_components shards",
            "augment.color_noise above 0, and augment",
        ),
        (
            "cifar10",
            "--model.columns split",
            "model.name alexnet_2012, and model.name is alexnet_c",
        ),
        (
            "alexnet_2012",
            "--model.batch_norm_momentum 0.1",
            "model.name alexnet_bn or alexnet_cifa",
        ),
        (
            "cifar10",
            "--data.shards here --data.cache_dir c",
            "data.shards at a URL, and data.shard",
        ),
        ("cifar10", "--data.beton x", "it needs data.reader beton, and data.reader is tar"),
        (
            "cifar10",
            "--metrics.enabled false --metrics.exporter_port 1",
            "--metrics.exporter_port has no effect: it needs metrics.enabled true, and metrics",
        ),
        (
            "cifar10",
            "--metrics.exporter false --metrics.exporter_port 1",
            "metrics.exporter true, a",
        ),
    ],
)
def test_an_option_without_effect_is_refused(recipe: str, arguments: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\A--[^\n]+; leave it out\Z") as error:
        overridden(RECIPES[recipe](), shlex.split(arguments))
    assert sentence in str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_gives_falls_back_where_a_choice_leaves_it_without_effect(
    recipe: str,
) -> None:
    """Config refuses to be made otherwise; what has an effect stays."""
    arguments = "--schedule.name cosine --optim.name adam --augment.color_noise 0"
    before = RECIPES[recipe]()
    config = overridden(before, arguments.split())
    idle = {*idle_fields(values_of(config))}
    assert {"schedule.step_epochs", "optim.nesterov", "augment.color_noise_until_epoch"} < idle
    assert all(field_of(config, name) == FIELDS[name].default for name in idle)
    named = {"schedule.name", "optim.name", "augment.color_noise"}
    assert {
        field_of(config, name) == field_of(before, name) for name in FIELDS.keys() - idle - named
    } == {True}


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("learning_rate", "--optim.learning_rate?"),
        ("optim.lr", "--optim.learning_rate?"),
        ("lr", "--optim.learning_rate?"),
        ("optim.learning_rat", "--optim.learning_rate or --optim.bias_learning_rate_ratio?"),
        ("wd", "--optim.weight_decay?"),
        ("batch-size", "--global_batch_size?"),
        ("gbs", "--global_batch_size?"),
        ("epoch", "--epochs?"),
        ("workers", "--data.decode_threads?"),
        ("optimizer", "--optim.name?"),
        ("schedule.warmup", "--schedule.warmup_ratio?"),
        ("every_epochs", "--evaluation.every_epochs or --checkpoint.every_epochs?"),
        ("max_step", "--max-steps?"),
        ("run_dirs", "--run-dir?"),
        ("precison", "--precision?"),
        ("pretrained", "--init.weights?"),
        ("freze", "--freeze?"),
        ("optim", None),
        ("xyzzy", None),
    ],
)
def test_an_unknown_option_names_the_one_that_was_meant(option: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match=f"unknown option --{option.replace('-', '_')}; ") as error:
        overridden(Config(), [f"--{option}", "1"])
    hint = "" if meant is None else f"did you mean {meant} "
    assert str(error.value).endswith(f"; {hint}--help-all lists them all")


def test_what_other_programs_call_an_option_exists() -> None:
    assert set(_SYNONYMS.values()) <= {*FIELDS, *RUN_WORDS}


def test_help_explains_every_field() -> None:
    lines = explanations(Config()).splitlines()
    flags, sentences = lines[::2], lines[1::2]
    assert [line.split()[0] for line in flags] == [f"--{name}" for name in FIELDS]
    for sentence in sentences:
        assert re.fullmatch(r" {8}[A-Za-z0-9].*\.", sentence)


def test_help_lists_what_is_possible() -> None:
    text = explanations(Config())
    assert "  --optim.name sgd  (sgd | adam | adamw)\n" in text
    assert "  --augment.flip none  (none | random | alternating)\n" in text
    assert "  --optim.clip_norm none  (above 0, or none)\n" in text
    assert "  --model.dropout 0.5  (0 or more, below 1)\n" in text
    assert "  --schedule.step_epochs ''  (epochs in rising order)\n" in text
    assert "  --data.drop_last true\n" in text


def test_help_says_beside_what_an_option_has_an_effect() -> None:
    text = explanations(Config())
    assert "in each step. Only with optim.name adam or adamw.\n" in text
    assert " Only with optim.name sgd and optim.momentum above 0.\n" in text
    assert text.count(" Only with ") == sum(bool(needs_of(entry)) for entry in FIELDS.values())


def test_help_names_the_short_form() -> None:
    text = explanations(Config())
    assert " In short --init.\n" in text
    assert " In short --freeze. Only with init.weights.\n" in text


def test_a_field_is_given_once_in_whichever_form() -> None:
    with pytest.raises(ValueError, match=r"--init\.weights is given twice"):
        parse_words(["--init", "/a", "--init.weights", "/a"])


def test_help_says_whether_a_field_may_change() -> None:
    text = explanations(Config(), ["log_every_steps", "data.decode_threads", "seed"])
    assert "`train` events. It may change when a run is resumed.\n" in text
    assert "decode. It may differ between hosts, and change when a run is resumed.\n" in text
    assert text.count("It may ") == 2


def test_the_outline_has_the_fields_with_an_effect_in_the_recipe_by_group() -> None:
    lines = outline(RECIPES["cifar10_blog"]()).splitlines()
    assert "  --optim.…  The optimizer and the loss it minimises." in lines
    assert all(len(line) <= 100 for line in lines)
    text = " ".join(line.strip() for line in lines)
    assert "name adam, learning_rate 0.001, bias_learning_rate_ratio 1.0, beta1 0.9, " in text
    assert "nesterov" not in text


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("optim.beta1", ["--optim.beta1"]),
        ("--log-every-steps", ["--log_every_steps"]),
        (
            "checkpoint",
            ["--checkpoint.every_epochs", "--checkpoint.keep", "--checkpoint.background"],
        ),
        ("beta1", ["--optim.beta1"]),
        ("lr", ["--optim.learning_rate"]),
        ("xyzzy", []),
    ],
)
def test_a_field_or_a_group_is_explained_alone(word: str, found: list[str]) -> None:
    text = explanation(Config(), word)
    assert re.findall(r"^  (--\S+)", text, re.MULTILINE) == found
    assert found or text == "no field 'xyzzy'; --help-all has them all"
