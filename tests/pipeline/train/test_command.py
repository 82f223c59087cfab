"""The command line of training: what it takes, and a sentence for all else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.command_line import RUN_WORDS
from pipeline.config.recipes import RECIPES, cifar10
from pipeline.config.schema import FIELDS, Config
from pipeline.run.ending import STOP_SIGNALS
from pipeline.train.__main__ import main
from pipeline.train.command import help_text, parse_command

REQUIRED = ["cifar10", "--data.shards", "shards", "--run-dir", "run"]


@pytest.fixture(autouse=True)
def signals_stay() -> Iterator[None]:
    """The command leaves them ignored, as its process is about to end."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_least_that_is_needed() -> None:
    command = parse_command(REQUIRED)
    assert command.recipe == "cifar10"
    assert command.run.path == Path("run")
    assert command.max_steps is None
    assert command.config.data.shards == f"{Path.cwd()}/shards"
    assert command.locations == (f"--data.shards shards is stored as {Path.cwd()}/shards",)
    assert command.config.optim == cifar10().optim


def test_options_in_any_order_and_form() -> None:
    command = parse_command(
        [
            "cifar10_blog",
            "--max-steps=7",
            "--run-dir=a=b",
            "--epochs",
            "3",
            "--data.shards=shards",
            "--optim.clip-norm",
            "1.5",
        ]
    )
    assert command.max_steps == 7
    assert command.run.path == Path("a=b")
    assert (command.config.epochs, command.config.optim.clip_norm) == (3, 1.5)


def test_paths_are_those_that_a_shell_would_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    monkeypatch.chdir(tmp_path)
    words = ["--data.shards=~/shards", "--run-dir=~/run", "--data.reader=beton"]
    command = parse_command(["cifar10", *words, "--data.beton=x/train.beton"])
    assert command.run.path == Path("/home/of/me/run")
    assert command.config.data.shards == "/home/of/me/shards"
    assert command.config.data.beton == f"{tmp_path}/x/train.beton"
    assert command.locations == (
        "--data.shards ~/shards is stored as /home/of/me/shards",
        f"--data.beton x/train.beton is stored as {tmp_path}/x/train.beton",
    )
    remote = ["--data.shards=https://h/~me//s", "--data.reader=remote", "--data.cache_dir=/c"]
    command = parse_command(["cifar10", *remote, "--run-dir=run"])
    assert command.config.data.shards == "https://h/~me//s"
    assert command.locations == ()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"the recipe is missing: .*--run-dir RUN .*recipes .*cifar10, cifar10_blog"),
        (["--epochs", "3"], "the recipe is missing"),
        (["imagenet", *REQUIRED[1:]], "no recipe 'imagenet'; there are .*cifar10, cifar10_blog"),
        (["cifar_10", *REQUIRED[1:]], "no recipe 'cifar_10'; did you mean cifar10\\? there are"),
        (REQUIRED[:3], "--run-dir is missing; give the directory"),
        ([*REQUIRED[:3], "--run-dir", ""], "--run-dir is missing; give the directory"),
        ([*REQUIRED[:3], "--run-dir"], "--run-dir has no value; expected --run-dir VALUE"),
        (["cifar10", "--run-dir", "--data.shards", "x"], "--run-dir has no value"),
        (["cifar10", "--run-dir", "run"], "--data.shards is missing; give the directory"),
        ([*REQUIRED, "--max-steps"], "--max-steps has no value"),
        ([*REQUIRED, "--init="], "--init is empty; give a run, an export or a file of weights"),
        (["finetune", *REQUIRED[1:]], "--init is missing, and finetune needs it; give a run"),
        ([*REQUIRED, "--init=a", "--fork-from=b"], "--fork-from and --init exclude each other"),
        ([*REQUIRED, "--epochs", "2", "--epochs=3"], "--epochs is given twice: leave one out"),
        ([*REQUIRED, "--run-dir=x"], "--run-dir is given twice: leave one out"),
        ([*REQUIRED, "--max-steps", "0"], "--max-steps is 0; expected at least 1"),
        ([*REQUIRED, "--max-steps", "-3"], "--max-steps is -3; expected at least 1"),
        ([*REQUIRED, "--max-steps", "1.5"], "--max-steps is '1.5'"),
        ([*REQUIRED, "--learning_rate", "1"], "did you mean --optim.learning_rate?"),
        ([*REQUIRED, "--epochs", "ten"], "--epochs is 'ten'; expected a number"),
        ([*REQUIRED, "--epochs", "0"], "epochs is 0"),
        ([*REQUIRED, "--global_batch_size", "2.5"], "expected a whole number"),
        ([*REQUIRED, "run"], "unexpected argument 'run'"),
        (
            [*REQUIRED, "--fork-from="],
            "--fork-from is empty; give the --run-dir of the run to begin",
        ),
        ([*REQUIRED[:3], "--run-dir=~no.body/x"], "~no.body is no user's home directory; give"),
        ([*REQUIRED[:1], "--data.shards=~no.body"], "~no.body is no user's home directory"),
        ([*REQUIRED, "--precision", "fp8"], "expected one of auto, fp32, bf16, fp16"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        parse_command(arguments)
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", f"error: {error.value}\n")


@pytest.mark.parametrize(
    ("text", "run", "name"),
    [
        ("/a/run", "/a/run", "newest"),
        ("/a/run@1200", "/a/run", "1200"),
        ("/a/run@best", "/a/run", "best"),
        ("/a/me@home", "/a/me@home", "newest"),
        ("/a/me@home@7", "/a/me@home", "7"),
        ("@7", f"{Path.cwd()}/@7", "newest"),
        ("b/run", f"{Path.cwd()}/b/run", "newest"),
        ("~/run@best", f"{Path.home()}/run", "best"),
    ],
)
def test_a_fork_s_source_is_a_run_and_one_of_its_checkpoints(
    text: str, run: str, name: str
) -> None:
    source = parse_command([*REQUIRED, "--fork-from", text]).fork_from
    assert source is not None
    assert (str(source.run.path), source.checkpoint) == (run, name)
    assert str(source) == f"{run}@{name}"
    assert parse_command(REQUIRED).fork_from is None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, *RECIPES])
def test_help_lists_every_recipe_and_every_field(
    recipe: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--help-all"] if recipe is None else [recipe, "--help-all"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text == f"{help_text(arguments)}\n"
    assert all(f"\n  {name} " in text for name in RECIPES)
    config = Config() if recipe is None else RECIPES[recipe]()
    assert all(f"\n  --{name} " in text for name in FIELDS)
    assert f"--global_batch_size {config.global_batch_size}  (at least 1)\n" in text
    assert all(f"\n  --{name} " in text for name in RUN_WORDS)
    assert ("values of" in text) is (recipe is not None)


def test_help_is_short_unless_all_of_it_is_asked_for() -> None:
    short, whole = help_text(["cifar10", "--help"]), help_text(["cifar10", "--help-all"])
    assert len(short.splitlines()) < 70 < len(whole.splitlines())
    assert all(f"\n  {name} " in short for name in RECIPES)
    assert all(f"\n  --{name} " in short for name in RUN_WORDS)
    assert "--help-all" in short
    assert "values of cifar10" in short


def test_help_explains_one_field_with_the_recipe_s_value() -> None:
    assert help_text(["cifar10", "--help", "optim.momentum"]) == (
        "  --optim.momentum 0.9  (0 or more, below 1)\n"
        "        SGD's momentum: the share of it that stays in each step. Only with optim.name sgd."
    )
    assert help_text(["--help", "cifar10"]) == help_text(["cifar10", "--help"])


def test_a_broken_environment_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(REQUIRED) == 1
    assert capsys.readouterr().err.startswith("error: the environment variable RANK is zero")
