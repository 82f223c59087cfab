"""A config as JSON: how it is saved, read back, and compared with the one a run goes on with."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pipeline.config.marks import show
from pipeline.config.schema import (
    FIELDS,
    Config,
    config_of,
    idle_fields,
    is_operational,
    values_of,
    with_effect,
)

_REMOVED = frozenset({"metrics.exporter_linger_seconds"})
"""Fields that only older versions had; what they hold changes nothing that a run computes."""


def to_json(config: Config) -> dict[str, Any]:
    """The config as nested objects of JSON's own types."""
    nested: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return nested


def from_json(nested: Mapping[str, Any]) -> Config:
    """The inverse of `to_json`.

    A field that an older version did not have has its default, and so has one without an effect:
    an older version may have kept another value. Raises `ValueError` if a field is unknown here or
    a value not of its type.
    """
    saved = dict(_leaves(nested))
    if unknown := saved.keys() - FIELDS.keys():
        raise ValueError(
            f"the configuration was saved by another version: {', '.join(sorted(unknown))} is "
            "unknown here"
        )
    values = {name: field.default for name, field in FIELDS.items()}
    for name, value in saved.items():
        field = FIELDS[name]
        if not _is_of(value, field.kind) and not (value is None and field.is_optional):
            raise ValueError(
                f"the saved configuration is damaged: {name} is {value!r}, expected "
                f"{inspect.formatannotation(field.kind)}{' | None' if field.is_optional else ''}; "
                "restore it from a copy"
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    return config_of(with_effect(values))


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is saved, by dotted name, without `_REMOVED` fields."""
    for last, value in nested.items():
        name = f"{prefix}{last}"
        if isinstance(value, dict) and name not in FIELDS:
            yield from _leaves(value, f"{name}.")
        elif name not in _REMOVED:
            yield name, value


def _is_of(value: object, kind: Any) -> bool:
    """Whether JSON's `value` can be one of the type."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_is_of(each, get_args(kind)[0]) for each in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int)


def differences(
    config: Config, saved: Mapping[str, Any], *, at_any_length: bool = False
) -> list[str]:
    """The fields in which `config` computes something else than the `to_json` of another did.

    Each as 'name: was …, is …'. One that has no effect in `config` is none of them: if it had one
    before, so is the field that it depends on. With `at_any_length` the number of epochs may be
    another one.
    """
    was = dict(_leaves(to_json(Config()))) | dict(_leaves(saved))
    now = dict(_leaves(to_json(config)))
    free = {name for name in FIELDS if is_operational(name)} | {*idle_fields(values_of(config))}
    free |= {"epochs"} if at_any_length else set()
    names = [name for name in now | was if name not in free and now.get(name) != was.get(name)]
    return [f"{name}: was {show(was.get(name))}, is {show(now.get(name))}" for name in names]
