"""The command line of `pipeline.train`: what it asks for, and what `--help` says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.shard_set.fields import summary_of
from data_prep.shard_set.files import path_option
from data_prep.shard_set.options import Named
from pipeline.config.command_line import RUN_OPTIONS, locations_given, parse_words, with_values
from pipeline.config.data import located
from pipeline.config.help import explanation, explanations, outline
from pipeline.config.recipes import NEED_WEIGHTS, RECIPES, recipe_config
from pipeline.config.schema import FIELDS, Config
from pipeline.run.directory import ForkSource, RunDirectory

_USAGE = (
    "python -m pipeline.train RECIPE --data.shards SHARDS --run-dir RUN "
    "[--max-steps N] [--fork-from RUN[@CHECKPOINT] | --init FROM] [--FIELD VALUE …]"
)
_HELP, _HELP_ALL = ("-h", "--help"), "--help-all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What the command line asks for."""

    recipe: str
    config: Config
    run: RunDirectory
    max_steps: int | None
    """Stop once this number of steps is done in the whole life of the run."""
    fork_from: ForkSource | None
    """Where a new run begins, if not with fresh weights."""
    given: frozenset[str]
    """The fields that the command line names."""
    locations: tuple[str, ...]
    """A sentence for each file or folder that `config` names otherwise than the user did."""


def parse_command(arguments: Sequence[str]) -> Command:
    """Raises `ValueError` for anything that is not as `--help` says."""
    if not arguments or arguments[0].startswith("--"):
        raise ValueError(
            f"the recipe is missing: {_USAGE}; there are the recipes {', '.join(sorted(RECIPES))}"
        )
    recipe, *words = arguments
    given = parse_words(words)
    values = {name: value for name, value in given.items() if name in FIELDS}
    config = with_values(recipe_config(recipe), values)
    run_dir, source = given.get("run_dir"), given.get("fork_from")
    if not run_dir:
        raise ValueError("--run-dir is missing; give the directory that this run's files go to")
    if source == "":
        raise ValueError("--fork-from is empty; give the --run-dir of the run to begin at")
    if source is not None and config.init.weights:
        raise ValueError(
            "--fork-from and --init exclude each other: a fork goes on from where another run is, "
            "and --init begins a new run with weights alone; leave one out"
        )
    if not config.init.weights and (recipe in NEED_WEIGHTS or "init.weights" in given):
        what = "is empty" if "init.weights" in given else f"is missing, and {recipe} needs it"
        raise ValueError(f"--init {what}; give a run, an export or a file of weights")
    if not config.data.shards:
        raise ValueError("--data.shards is missing; give the directory or URL of the shard set")
    return Command(
        recipe=recipe,
        config=config,
        run=RunDirectory(path_option(run_dir)),
        max_steps=given.get("max_steps"),
        fork_from=None if source is None else ForkSource.parsed(source),
        given=frozenset(values),
        locations=tuple(
            f"--{name} {text} is stored as {located(text)}"
            for name, text in locations_given(words).items()
            if located(text) != text
        ),
    )


def asks_for_help(arguments: Sequence[str]) -> bool:
    return not {*_HELP, _HELP_ALL}.isdisjoint(arguments)


def help_text(arguments: Sequence[str]) -> str:
    """The answer to `--help`, with the values of the recipe if one is named.

    Short; `--help FIELD` explains one field or those of a group, `--help-all` all of them.
    """
    recipe = next((name for name in arguments if name in RECIPES), None)
    config = Config() if recipe is None else recipe_config(recipe)
    behind = [word for flag, word in itertools.pairwise(arguments) if flag in _HELP]
    asked = next((word for word in behind if word not in RECIPES), None)
    if asked is not None and _HELP_ALL not in arguments:
        return explanation(config, asked)
    values = "their defaults" if recipe is None else f"the values of {recipe}"
    if _HELP_ALL in arguments:
        fields = f"Fields, with {values}:\n{explanations(config)}"
    else:
        fields = (
            f"Fields with an effect, with {values} (--help FIELD or --help GROUP explains one or "
            f"some, --help-all all):\n{outline(config)}"
        )
    recipes = "\n".join(f"  {name:17} {summary_of(make)}" for name, make in RECIPES.items())
    return f"usage: {_USAGE}\n\nRecipes:\n{recipes}\n\nOptions:\n{_options()}\n\n{fields}"


def _options() -> str:
    lines = []
    for field in RUN_OPTIONS.values():
        named = field.mark(Named)
        assert named is not None
        lines.append(f"  {named.option} {named.value}\n        {field.help}")
    return "\n".join(lines)
