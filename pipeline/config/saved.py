"""A config as JSON: how it is saved, read back, and compared with the one a run goes on with."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pipeline.config.schema import Config, flatten, is_operational

T = TypeVar("T")


def to_json(config: Config) -> dict[str, Any]:
    """The config as nested objects of JSON's own types."""
    nested: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return nested


def from_json(nested: Mapping[str, Any]) -> Config:
    """The inverse of `to_json`; a field that an older version did not have has its default.

    Raises `ValueError` if a field is unknown here or a value not of its type.
    """
    return _from_json(Config, nested, "")


def _from_json(kind: type[T], nested: Mapping[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind)
    if unknown := set(nested) - set(hints):
        raise ValueError(
            f"the configuration was saved by another version: {', '.join(sorted(unknown))} is "
            "unknown here"
        )
    values = {}
    for name, value in nested.items():
        hint = hints[name]
        is_group = dataclasses.is_dataclass(hint)
        if not (isinstance(value, dict) if is_group else _is_of(value, hint)):
            expected = "its fields" if is_group else inspect.formatannotation(hint)
            raise ValueError(
                f"the saved configuration is damaged: {prefix}{name} is {value!r}, "
                f"expected {expected}; restore it from a copy"
            )
        if is_group:
            values[name] = _from_json(hint, value, f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _is_of(value: object, kind: Any) -> bool:
    """Whether JSON's `value` can be a field of the type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if arguments:  # X | None
        return any(_is_of(value, option) for option in arguments)
    return type(value) is kind or (kind is float and type(value) is int)


def differences(
    config: Config, saved: Mapping[str, Any], *, at_any_length: bool = False
) -> list[str]:
    """The fields in which `config` computes something else than the `to_json` of another did.

    Each as 'name: was …, is …'. With `at_any_length` the number of epochs may be another one.
    """
    was = dict(_leaves(to_json(Config()))) | dict(_leaves(saved))
    now = dict(_leaves(to_json(config)))
    free = {name for name, entry, _ in flatten(config) if is_operational(entry)}
    free |= {"epochs"} if at_any_length else set()
    names = [name for name in now | was if name not in free and now.get(name) != was.get(name)]
    return [f"{name}: was {was.get(name)}, is {now.get(name)}" for name in names]


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
