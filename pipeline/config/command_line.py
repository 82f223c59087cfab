"""Replaces fields of a config by what the command line says: `--optim.learning_rate 0.1`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_prep.shard_set.options import option_of
from pipeline.config.conditions import why_idle
from pipeline.config.data import LOCATION
from pipeline.config.marks import OR_NONE
from pipeline.config.run_options import RUN_OPTIONS
from pipeline.config.schema import FIELDS, Config, config_of, values_of, with_effect
from pipeline.config.suggestion import suggestion

_NONE_WORDS = ("none", "null")


def parse_words(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of fields by dotted name, and those of `RunOptions`. Raises `ValueError`."""
    values: dict[str, Any] = {}
    for name, text in _pairs(arguments):
        field = FIELDS.get(name) or RUN_OPTIONS.get(name)
        if field is None:
            hint = suggestion(name)
            raise ValueError(f"unknown option --{name}; {hint}--help-all lists them all")
        label = f"--{name}" if name in FIELDS else option_of(field)
        if name in values:
            raise ValueError(f"{label} is given twice: leave one out")
        is_none = name in FIELDS and field.is_optional and text.lower() in _NONE_WORDS
        values[name] = None if is_none else field.read(text, label)
        field.check(values[name], label, OR_NONE)
    return values


def with_values(
    config: Config, values: Mapping[str, Any], flags: Mapping[str, str] | None = None
) -> Config:
    """A copy of `config` with these values by dotted name.

    What has no effect beside them falls back to its default, so that `alexnet_2012` can have
    another schedule. Raises `ValueError` if it is one of the `values` itself, or one cannot be.
    `flags` names the options of another command than training that give a value.
    """
    all_values = values_of(config) | dict(values)
    check_effects(values, all_values, flags)
    try:
        return config_of(with_effect(all_values))
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
    return {
        name: text
        for name, text in _pairs(arguments)
        if name in FIELDS and LOCATION in FIELDS[name].marks
    }


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
