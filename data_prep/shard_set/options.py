"""Command lines of dataclasses: an option for each field, read, checked and explained by it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin

from data_prep.shard_set.fields import Field, fields_of, summary_of
from data_prep.shard_set.parser import Parser

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Named:
    """A mark: what the field is called on the command line, and its value in the help.

    What has no hyphens in front is an argument with that name, and no option.
    """

    option: str
    value: str | None = None


def option_of(field: Field) -> str:
    named = field.mark(Named)
    return f"--{field.name.replace('_', '-')}" if named is None else named.option


def add_options(
    parser: argparse.ArgumentParser, kind: type, *, without: Collection[str] = ()
) -> list[argparse.Action]:
    """An option for each field of the dataclass; one that is not given is None."""
    return [
        _add_option(parser, field)
        for field in fields_of(kind).values()
        if field.name not in without
    ]


def _add_option(parser: argparse.ArgumentParser, field: Field) -> argparse.Action:
    option, named = option_of(field), field.mark(Named)
    how: dict[str, Any] = {"help": _help(field), "default": None}
    if not option.startswith("-"):
        return parser.add_argument(field.name, metavar=option, type=_reader(field, option), **how)
    how["dest"] = field.name
    if field.kind is bool and field.default:
        return parser.add_argument(option, action=argparse.BooleanOptionalAction, **how)
    if field.kind is bool:
        return parser.add_argument(option, action="store_const", const=True, **how)
    if field.choices:
        how["metavar"] = f"{{{','.join(field.choices)}}}"
    elif named is not None and named.value is not None:
        how["metavar"] = named.value
    else:
        how["metavar"] = "N" if field.kind in (int, float) else option.strip("-").upper()
    if get_origin(field.kind) is tuple:
        return parser.add_argument(option, action="append", **how)
    how["required"] = field.default is dataclasses.MISSING
    return parser.add_argument(option, type=_reader(field, option), **how)


def _reader(field: Field, option: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = field.read(text, option)
            field.check(value, option)
        except ValueError as error:
            raise argparse.ArgumentError(None, str(error)) from None
        return value

    return read


def _help(field: Field) -> str:
    default = field.default
    if isinstance(default, bool):
        default = "yes" if default else None
    is_shown = default not in (None, (), "", dataclasses.MISSING)
    return f"{field.help}{f' Default: {default}.' if is_shown else ''}".replace("%", "%%")


def made(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass with the values given for its fields; None stands for the default."""
    values = {name: given.get(name) for name in fields_of(kind)}
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if value is not None
        }
    )


def add_commands(
    parser: argparse.ArgumentParser, metavar: str, kinds: Mapping[str, type]
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """A command for each of these dataclasses, whose docstring explains it."""
    commands = parser.add_subparsers(required=True, metavar=metavar)
    for name, kind in kinds.items():
        summary = summary_of(kind).replace("%", "%%")
        command = commands.add_parser(name, help=summary.rstrip("."), description=summary)
        add_options(command, kind)
        command.set_defaults(command_kind=kind)
    return commands


def command_of(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Any:
    """The dataclass of the command that is given; exits with the usage if that cannot be."""
    given = parser.parse_args(arguments)
    return made(given.command_kind, vars(given))


def read_options(program: str, kind: type[T], arguments: Sequence[str] | None) -> T:
    """What the command line of `python -m PROGRAM` says; exits with its usage if that cannot be."""
    parser = Parser(prog=f"python -m {program}", description=summary_of(kind))
    add_options(parser, kind)
    return made(kind, vars(parser.parse_args(arguments)))


def words_of(options: Any) -> list[str]:
    """A command line that gives these options, but for those that are the default."""
    return [
        f"{option_of(field)}={getattr(options, name)}"
        for name, field in fields_of(type(options)).items()
        if getattr(options, name) != field.default
    ]
