"""Replaces fields of a config by what the command line says: `--optim.learning_rate 0.1`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pipeline.config.conditions import describe_needs, show, why_idle
from pipeline.config.schema import FIELDS, Config, Location, flatten, located
from pipeline.config.suggestion import suggestion

T = TypeVar("T")

_NONE_WORDS = ("none", "null")
_BOOLEANS = {"true": True, "false": False}


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of `arguments` by dotted name. Raises `ValueError`."""
    kinds = dict(leaf_types(Config))
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments):
        if name not in kinds:
            raise ValueError(f"unknown option --{name}; {suggestion(name)}--help lists them all")
        values[name] = _parse(name, text, kinds[name])
    return values


def with_values(
    config: Config, values: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> Config:
    """A copy of `config` with these values by dotted name.

    What has no effect beside them falls back to its default, so that `alexnet_2012` can have
    another schedule. Raises `ValueError` if it is one of the `values` itself, or one cannot be.
    `flags` names the options of another command than training that give a value.
    """
    all_values = {name: value for name, _, value in flatten(config)} | dict(values)
    check_effects(values, all_values, flags)
    idle = {
        name: entry.default
        for name, entry in FIELDS.items()
        if why_idle(name, all_values, FIELDS) is not None
    }
    try:
        return _replace(config, {**values, **idle})
    except ValueError as error:
        sentence = str(error)
        for name, flag in (flags or {}).items():
            sentence = sentence.replace(name, flag)
        raise ValueError(sentence) from None


def check_effects(
    names: Iterable[str], values: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> None:
    """Raise `ValueError` if one of the fields `names` has no effect beside these values."""
    for name in names:
        if (reason := why_idle(name, values, FIELDS)) is not None:
            flag = (flags or {}).get(name, f"--{name}")
            raise ValueError(f"{flag} has no effect: {reason}; leave it out")


def locations_given(arguments: Sequence[str]) -> dict[str, str]:
    """What `arguments` say for the fields that hold a `Location`, by dotted name."""
    kinds = dict(leaf_types(Config))
    return {name: text for name, text in _pairs(arguments) if kinds.get(name) == Location}


def locations_of(config: Config) -> list[str]:
    """What the fields that hold a `Location` hold, but for those that are empty."""
    values = {name: value for name, _, value in flatten(config)}
    return [values[name] for name, kind in leaf_types(Config) if kind == Location and values[name]]


def leaf_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every field below a dataclass that is not a group itself."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from leaf_types(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _replace(config: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """`config` with all `values` at once, so that checks see only the final state."""
    changes = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + entry.name, getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = _replace(value, values, f"{name}.")
        else:
            changes[entry.name] = values.get(name, value)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ValueError(f"unexpected argument '{argument}'; expected --FIELD VALUE")
        name, has_value, value = argument[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} has no value; expected --{name} VALUE")
            value = rest.pop(0)
        yield name.replace("-", "_"), value


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind == Location:
        return located(text)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if text in arguments:
            return text
        raise _wrong(name, text, f"one of {', '.join(arguments)}")
    if origin in (Union, types.UnionType):
        if text.lower() in _NONE_WORDS:
            return None
        (inner,) = (option for option in arguments if option is not types.NoneType)
        return _parse(name, text, inner)
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(_parse(name, part, arguments[0]) for part in parts)
    return _parse_plain(name, text, kind)


def _parse_plain(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        raise _wrong(name, text, "true or false")
    assert kind in (int, float), f"{name} has a type that no command line can give: {kind}"
    try:
        value = kind(text)
    except ValueError:
        raise _wrong(name, text, "a whole number" if kind is int else "a number") from None
    if kind is float and not math.isfinite(value):
        raise _wrong(name, text, "a finite number")
    return value


def _wrong(name: str, text: str, expected: str) -> ValueError:
    return ValueError(f"--{name} is '{text}'; expected {expected}")


def describe_fields(config: Config) -> str:
    """One paragraph a field, with the value it has in `config`: the end of `--help`."""
    lines = []
    kinds, documentation = dict(leaf_types(Config)), dict(_documentation(Config))
    for name, entry, value in flatten(config):
        needs = describe_needs(entry)
        lines.append(f"  --{name} {show(value)}{_choices(kinds[name])}")
        lines.append(f"        {documentation[name]}{f' Only with {needs}.' if needs else ''}")
    return "\n".join(lines)


def summary_of(recipe: Callable[..., object]) -> str:
    """The first line of a function's docstring, from its source: python -OO keeps none."""
    (definition,) = ast.parse(inspect.getsource(recipe)).body
    assert isinstance(definition, ast.FunctionDef)
    return (ast.get_docstring(definition) or "").partition("\n")[0]


def _choices(kind: Any) -> str:
    return f"  ({' | '.join(get_args(kind))})" if get_origin(kind) is Literal else ""


def _documentation(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The docstring below each field, by dotted name; Python keeps them in the source only."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    hints = typing.get_type_hints(kind)
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        if dataclasses.is_dataclass(hints[name]):
            yield from _documentation(hints[name], f"{prefix}{name}.")
        elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield prefix + name, " ".join(str(following.value.value).split())
