"""Replaces fields of a config by what the command line says: `--optim.learning_rate 0.1`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pipeline.config import Config, flatten

T = TypeVar("T")

_NONE_WORDS = ("none", "null")
_BOOLEANS = {"true": True, "false": False}


def apply_overrides(config: Config, arguments: Sequence[str]) -> Config:
    """A copy of `config` with the fields that `arguments` name: `--a.b VALUE` or `--a.b=VALUE`.

    Raises `ValueError` for an unknown field, a value of the wrong type or one out of range.
    """
    kinds = dict(_leaf_types(Config))
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments):
        if name not in kinds:
            raise ValueError(_unknown(name, list(kinds)))
        values[name] = _parse(name, text, kinds[name])
    return _replace(config, values)


def _leaf_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every field below a dataclass that is not a group itself."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _leaf_types(hint, f"{prefix}{name}.")
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


def _unknown(name: str, known: Sequence[str]) -> str:
    last = name.split(".")[-1]
    close = [other for other in known if other.split(".")[-1] == last]
    close = close or difflib.get_close_matches(name, known, n=2, cutoff=0.8)
    hint = f"did you mean {' or '.join(f'--{other}' for other in close)}? " if close else ""
    return f"unknown option --{name}; {hint}--help lists them all"


def _parse(name: str, text: str, kind: Any) -> Any:
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
    kinds, documentation = dict(_leaf_types(Config)), dict(_documentation(Config))
    for name, _, value in flatten(config):
        lines.append(f"  --{name} {_show(value)}{_choices(kinds[name])}")
        lines.append(f"        {documentation[name]}")
    return "\n".join(lines)


def _choices(kind: Any) -> str:
    return f"  ({' | '.join(get_args(kind))})" if get_origin(kind) is Literal else ""


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "''"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value) or "''"


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
