"""The options of `python -m launch slurm` as its specs declare them, and the words behind them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from data_prep.shard_set.files import PathOptionError, expanded, path_option
from launch.spec import PathText

_OPTIONS = {
    "time_limit": "--time",
    "signal_lead_seconds": "--signal-lead",
    "sbatch_options": "--sbatch-option",
    "prepare_time_limit": "--prepare-time",
    "prepare_partition": "--prepare-partition",
}
OF_PREPARING = ("time_limit", "partition")
"""Fields that `chain` takes twice: with `prepare_` before their names, of the jobs that prepare."""


def _option_of(name: str) -> str:
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def add_options(parser: argparse.ArgumentParser, specs: Sequence[type[Any]]) -> None:
    """An option for each field of the specs; what is not given is None.

    `parser` then has the default `refuse_misplaced`, to be called with the words of the command.
    """
    actions = []
    types = {
        name: type_
        for spec in specs
        for name, type_ in get_type_hints(spec, include_extras=True).items()
    }
    for field in {
        field.name: field for spec in specs for field in dataclasses.fields(spec)
    }.values():
        option = _option_of(field.name)
        if field.name == "output":  # the logs have their place
            continue
        named: dict[str, Any] = {"dest": field.name, "help": _help(field)}
        if field.name == "sbatch_options":
            named |= {"action": "append", "metavar": "--NAME=VALUE"}
        elif types[field.name] is bool:
            named |= {"action": argparse.BooleanOptionalAction}
        elif types[field.name] in (int, int | None):
            named |= {"type": int, "metavar": "N"}
        else:
            kind = _paths if types[field.name] == PathText | None else str
            named |= {"type": kind, "metavar": option.strip("-").upper()}
        actions.append(parser.add_argument(option, **named))
    if len(specs) > 1:
        names = [f"prepare_{name}" for name in OF_PREPARING]
        actions += [parser.add_argument(_option_of(name), dest=name) for name in names]
    text = "print the scripts, submit nothing"
    actions.append(parser.add_argument("--dry-run", action="store_true", help=text))
    parser.set_defaults(refuse_misplaced=misplacement_check(parser.prog, actions))


def _paths(text: str) -> str:
    return ",".join(map(expanded, text.split(",")))


def _help(field: dataclasses.Field[Any]) -> str:
    known = [field.metadata["help"]] if "help" in field.metadata else []
    default: Any = field.default
    if isinstance(default, bool):
        default = "yes" if default else "no"
    if default not in (None, ()):
        known.append(f"default: {default}")
    return "; ".join(known).replace("%", "%%")


def misplacement_check(
    program: str, actions: Iterable[argparse.Action]
) -> Callable[[Sequence[str]], None]:
    """A function that raises `ValueError` if one of these options of `program` is in a command."""
    own = {name for action in actions for name in action.option_strings}

    def refuse_misplaced(arguments: Sequence[str]) -> None:
        for word in arguments[1:]:
            name = word.partition("=")[0].replace("_", "-")
            if name in own:
                raise ValueError(
                    f"{name} is an option of the launcher, and comes before {arguments[0]}: "
                    f"{program} {name} … {arguments[0]} …"
                )

    return refuse_misplaced


def without_tilde(arguments: Sequence[str], *paths: Path) -> list[str]:
    """The arguments with those that name one of `paths` by a `~` as they are on this host.

    On a node, or in a container, it could be another one.
    """
    words = []
    for word in arguments:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        with contextlib.suppress(PathOptionError):  # of an option that is no path
            if value.startswith("~") and path_option(value) in paths:
                word = f"{name}{sign}{expanded(value)}"
        words.append(word)
    return words
