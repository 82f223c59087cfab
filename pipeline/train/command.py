"""The command line of `pipeline.train`: what it asks for, and what `--help` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.shard_set.files import path_option
from pipeline.config.command_line import (
    describe_fields,
    locations_given,
    parse_overrides,
    summary_of,
    with_values,
)
from pipeline.config.recipes import RECIPES, recipe_config
from pipeline.config.schema import Config, located
from pipeline.run.directory import RunDirectory
from pipeline.run.fork_source import ForkSource

_USAGE = (
    "python -m pipeline.train RECIPE --data.shards SHARDS --run-dir RUN "
    "[--max-steps N] [--fork-from RUN[@CHECKPOINT]] [--FIELD VALUE …]"
)
_OPTIONS = """\
  --run-dir RUN
        The directory that this run's files go to; the same command goes on from what is there.
  --max-steps N
        End once N steps are done in the life of the run; the schedule stays that of all epochs.
  --fork-from RUN[@CHECKPOINT]
        Begin at a checkpoint of another run (newest, best or a step), with other options if need
        be: in its epoch, with its weights, and its optimizer's state if that fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What the command line asks for."""

    recipe: str
    config: Config
    run: RunDirectory
    max_steps: int | None
    """Stop once so many steps are done in the whole life of the run."""
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
    recipe, *rest = arguments
    run_dir, rest = _take(rest, "--run-dir")
    max_steps, rest = _take(rest, "--max-steps")
    source, rest = _take(rest, "--fork-from")
    values = parse_overrides(rest)
    config = with_values(recipe_config(recipe), values)
    if not run_dir:
        raise ValueError("--run-dir is missing; give the directory that this run's files go to")
    if source == "":
        raise ValueError("--fork-from is empty; give the --run-dir of the run to begin at")
    if not config.data.shards:
        raise ValueError("--data.shards is missing; give the directory or URL of the shard set")
    return Command(
        recipe=recipe,
        config=config,
        run=RunDirectory(path_option(run_dir)),
        max_steps=None if max_steps is None else _positive("--max-steps", max_steps),
        fork_from=None if source is None else ForkSource.parsed(source),
        given=frozenset(values),
        locations=tuple(
            f"--{name} {text} is {located(text)}"
            for name, text in locations_given(rest).items()
            if located(text) != text
        ),
    )


def _take(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of the option `name`, if it is there, and the other arguments."""
    rest = list(arguments)
    value = None
    while True:
        place = next((i for i, text in enumerate(rest) if text.partition("=")[0] == name), None)
        if place is None:
            return value, rest
        _, has_value, value = rest.pop(place).partition("=")
        if not has_value:
            if place == len(rest) or rest[place].startswith("--"):
                raise ValueError(f"{name} has no value; expected {name} VALUE")
            value = rest.pop(place)


def _positive(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name} is '{text}'; expected a whole number above 0")
    return int(text)


def asks_for_help(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def help_text(arguments: Sequence[str]) -> str:
    """The answer to `--help`, with the values of the recipe if one is named."""
    named = [name for name in arguments if name in RECIPES]
    config = RECIPES[named[0]]() if named else Config()
    recipes = "\n".join(f"  {name:17} {summary_of(recipe)}" for name, recipe in RECIPES.items())
    title = f"Fields, with the values of {named[0]}:" if named else "Fields, with their defaults:"
    fields = f"{title}\n{describe_fields(config)}"
    return f"usage: {_USAGE}\n\nRecipes:\n{recipes}\n\nOptions:\n{_OPTIONS}\n\n{fields}"
