"""Command lines of dataclasses: an option for each field, which reads, checks and explains it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin

from data_prep.shard_set.fields import Field, did_you_mean, fields_of, summary_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Named:
    """A mark: what the field is called on the command line, and its value in the help.

    A name without leading hyphens is that of a positional argument.
    """

    option: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Rest:
    """A mark: the field takes the first word that is not an option, and all words after it."""

    metavar: str


class NotAnOption:
    """A mark: the field is not on the command line."""


def option_of(field: Field) -> str:
    named = field.mark(Named)
    return f"--{field.name.replace('_', '-')}" if named is None else named.option


def option_fields(*kinds: type) -> list[Field]:
    """The fields of the dataclasses that are options; the last one of each name."""
    fields = {name: field for kind in kinds for name, field in fields_of(kind).items()}
    return [field for field in fields.values() if NotAnOption not in field.marks]


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated and repeated options; reports a misspelt one before a missing one."""

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)
        self._texts: list[tuple[object, str, Callable[[], str]]] = []

    def explain(self, thing: object, attribute: str, text: Callable[[], str]) -> None:
        """Set the attribute to the text only when help is asked for: it is read from the source."""
        self._texts.append((thing, attribute, text))

    def format_help(self) -> str:
        for thing, attribute, text in self._texts:
            setattr(thing, attribute, text())
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # else the options are those of its commands
            self._refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Checks the words up to those of another command."""
        rest, known, given = list(words), self._option_string_actions, set()
        takes_rest = any(action.nargs == argparse.REMAINDER for action in self._actions)
        while rest:
            name, has_value, _ = rest.pop(0).partition("=")
            if name == "--" or (takes_rest and not name.startswith("-")):
                return
            if not name.startswith("--"):
                continue
            if name not in known:
                hint = did_you_mean(name, known, before="; ")
                hint = hint or ("; those of the command come behind it" if takes_rest else "")
                self.error(f"unknown option {name}{hint}")
            if name in given and not isinstance(known[name], argparse._AppendAction):
                self.error(f"{name} is given twice: leave one out")
            given.add(name)
            if known[name].nargs is None and not has_value:
                del rest[:1]


def add_options(parser: argparse.ArgumentParser, *kinds: type) -> None:
    """An option for each field of the dataclasses; one that is not given is None."""
    assert isinstance(parser, Parser)
    for field in option_fields(*kinds):
        action = _add_option(parser, field)
        parser.explain(action, "help", functools.partial(_help, field))


def _add_option(parser: Parser, field: Field) -> argparse.Action:
    option, rest = option_of(field), field.mark(Rest)
    if rest is not None:
        return parser.add_argument(field.name, nargs=argparse.REMAINDER, metavar=rest.metavar)
    if not option.startswith("-") and get_origin(field.kind) is tuple:
        return parser.add_argument(field.name, metavar=option, nargs="+")
    if not option.startswith("-"):
        return parser.add_argument(field.name, metavar=option, type=_reader(field, option))
    how: dict[str, Any] = {"dest": field.name, "default": None}
    if field.kind is bool and field.default is True:
        how["action"] = argparse.BooleanOptionalAction
    elif field.kind is bool:
        how |= {"action": "store_const", "const": True}
    else:
        how |= {"metavar": _metavar(field, option), "type": _reader(field, option)}
        how["required"] = field.default is dataclasses.MISSING
    if get_origin(field.kind) is tuple:
        how |= {"action": "append", "type": str}
    return parser.add_argument(option, **how)


def _metavar(field: Field, option: str) -> str:
    named = field.mark(Named)
    if field.choices:
        return f"{{{','.join(field.choices)}}}"
    if named is not None and named.value is not None:
        return named.value
    return "N" if field.kind in (int, float) else option.strip("-").replace("-", "_").upper()


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


def _line(kind: type) -> str:
    return summary_of(kind).rstrip(".").replace("%", "%%")


def made(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass with the values given for its fields; None stands for the default."""
    values = {name: value for name in fields_of(kind) if (value := given.get(name)) is not None}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return kind(**values | lists)


Command = tuple[type, Callable[[Any], int | None]]
"""The dataclass of a command's options, and what runs it."""


def add_commands(
    parser: argparse.ArgumentParser, metavar: str, commands: Mapping[str, Command]
) -> argparse._SubParsersAction[Parser]:
    """Add commands, explained by the docstrings of their dataclasses.

    The parsed namespace has `run`, a function that takes it.
    """
    assert isinstance(parser, Parser)
    parsers: argparse._SubParsersAction[Parser] = parser.add_subparsers(
        required=True, metavar=metavar
    )
    for name, (kind, run) in commands.items():
        command = parsers.add_parser(name, help="")
        line = parsers._choices_actions[-1]  # what the help lists for it
        parser.explain(line, "help", functools.partial(_line, kind))
        command.explain(command, "description", functools.partial(summary_of, kind))
        add_options(command, kind)
        command.set_defaults(run=functools.partial(_run, kind, run))
    return parsers


def _run(kind: type, run: Callable[[Any], int | None], given: argparse.Namespace) -> int | None:
    return run(made(kind, vars(given)))


def read_options(program: str, kind: type[T], arguments: Sequence[str] | None) -> T:
    """The options of `python -m PROGRAM`; exits with its usage if they are wrong."""
    parser = Parser(prog=f"python -m {program}")
    parser.explain(parser, "description", functools.partial(summary_of, kind))
    add_options(parser, kind)
    return made(kind, vars(parser.parse_args(arguments)))


def words_of(options: Any, kind: type) -> list[str]:
    """A command line with the options of `kind` that differ from their defaults.

    Each must be an option with a value.
    """
    return [
        f"{option_of(field)}={getattr(options, name)}"
        for name, field in fields_of(kind).items()
        if getattr(options, name) != field.default
    ]
