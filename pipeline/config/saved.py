"""A config as JSON: how it is saved, read back, and compared with the one a run goes on with."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from data_prep.shard_set.fields import Field
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
    values = {name: field.default for name, field in FIELDS.items()}
    unknown = []
    for name, value in _leaves(nested):
        if name in FIELDS and _is_of(value, FIELDS[name]):
            values[name] = tuple(value) if isinstance(value, list) else value
        elif name in FIELDS:
            raise _damaged(name, value, _type_of(FIELDS[name]))
        elif any(field.startswith(f"{name}.") for field in FIELDS):
            raise _damaged(name, value, "its fields")
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"the configuration was saved by another version: {', '.join(sorted(unknown))} is "
            "unknown here"
        )
    return config_of(with_effect(values))


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is saved, by dotted name, without `_REMOVED` fields."""
    for last, value in nested.items():
        name = f"{prefix}{last}"
        if isinstance(value, dict) and name not in FIELDS:
            yield from _leaves(value, f"{name}.")
        elif name not in _REMOVED:
            yield name, value


def _is_of(value: object, field: Field) -> bool:
    """Whether JSON's `value` can be one of the field."""
    if get_origin(field.kind) is tuple:
        item = get_args(field.kind)[0]
        return isinstance(value, list) and all(_is_plain(each, item) for each in value)
    if field.choices:
        return value in field.choices
    return (value is None and field.is_optional) or _is_plain(value, field.kind)


def _is_plain(value: object, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _type_of(field: Field) -> str:
    return f"{inspect.formatannotation(field.kind)}{' | None' if field.is_optional else ''}"


def _damaged(name: str, value: object, expected: str) -> ValueError:
    return ValueError(
        f"the saved configuration is damaged: {name} is {value!r}, expected {expected}; "
        "restore it from a copy"
    )


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
    return [f"{name}: was {was.get(name)}, is {now.get(name)}" for name in names]
