"""Under which other fields' values a field of a config has an effect: declared at the field.

The check of the command line, the text of `--help` and what a recipe's own value becomes when it
loses its effect are all derived from these declarations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Condition:
    """What another field, or a fact that is known only later, has to be."""

    name: str
    """Dotted name of the other field, or the fact."""
    expected: str
    test: Callable[[Any], bool]

    def __str__(self) -> str:
        return f"{self.name} {self.expected}".rstrip()


Requirement = tuple[Condition, ...]
"""Of these at least one must hold."""


def one_of(name: str, *values: object) -> Condition:
    """The field has one of the `values`."""
    return Condition(name, " or ".join(map(show, values)), lambda value: value in values)


def above_zero(name: str) -> Condition:
    return Condition(name, "above 0", lambda value: bool(value > 0))


def given(name: str) -> Condition:
    """The field is neither none nor empty."""
    return Condition(name, "", bool)


def only_with(*conditions: Condition | Requirement) -> dict[str, Any]:
    """Metadata of a field that has an effect only if all `conditions` hold."""
    return {"needs": tuple(one if isinstance(one, tuple) else (one,) for one in conditions)}


def needs_of(entry: dataclasses.Field[Any]) -> tuple[Requirement, ...]:
    """What a field needs to have an effect; empty if it always has one."""
    needs: tuple[Requirement, ...] = entry.metadata.get("needs", ())
    return needs


def describe_needs(entry: dataclasses.Field[Any]) -> str:
    """Such as 'optim.name sgd and optim.momentum above 0'; empty if there are no needs."""
    return " and ".join(" or ".join(map(str, alternatives)) for alternatives in needs_of(entry))


def why_idle(
    name: str, values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]]
) -> str | None:
    """Why the field `name` has no effect beside these `values`, or None if it has one.

    A condition holds only if the field that it looks at has an effect itself; one on the field
    `name` is on its value alone. One on a fact that is not among the values yet counts as holding.
    """
    for alternatives in needs_of(fields[name]):
        reasons = [
            _why_unmet(condition, values, {} if condition.name == name else fields)
            for condition in alternatives
        ]
        if None not in reasons:
            return reasons[0] if len(reasons) == 1 else _neither(alternatives)
    return None


def _why_unmet(
    condition: Condition, values: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]]
) -> str | None:
    other = condition.name
    if other not in values:
        return None
    if other in fields and (reason := why_idle(other, values, fields)) is not None:
        return reason
    if condition.test(values[other]):
        return None
    return f"it needs {condition}, and {other} is {show(values[other])}"


def _neither(alternatives: Requirement) -> str:
    return f"it needs {' or '.join(map(str, alternatives))}"


def show(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "''"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value) or "''"
