"""Marks of a config's fields beside their limits: what may change, and what has an effect when.

The check of the command line, the text of `--help`, and what becomes of a recipe's value that loses
its effect are all derived from these marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.shard_set.fields import Field

OR_NONE = ", or none"
"""What the command line takes for None."""


class Operational:
    """A mark: the field may change when a run is resumed, as it says how the run is carried out."""


class PerHost(Operational):
    """A mark: it may differ between the hosts of a job, too."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What another field, or a fact that is known only later, has to be."""

    name: str
    expected: str
    test: Callable[[Any], bool]

    def __str__(self) -> str:
        return f"{self.name} {self.expected}".rstrip()


Requirement = tuple[Condition, ...]
"""Of these at least one must hold."""


@dataclass(frozen=True, slots=True)
class OnlyWith:
    """A mark: the field has an effect only if all requirements hold."""

    needs: tuple[Requirement, ...]


def only_with(*conditions: Condition | Requirement) -> OnlyWith:
    """Of a requirement with one condition only that one need be given."""
    return OnlyWith(tuple(one if isinstance(one, tuple) else (one,) for one in conditions))


def one_of(name: str, *values: object) -> Condition:
    """The field has one of the `values`."""
    return Condition(name, " or ".join(map(show, values)), lambda value: value in values)


def above_zero(name: str) -> Condition:
    return Condition(name, "above 0", lambda value: bool(value > 0))


def given(name: str) -> Condition:
    """The field is neither none nor empty."""
    return Condition(name, "", bool)


def needs_of(field: Field) -> tuple[Requirement, ...]:
    """What a field needs to have an effect; empty if it always has one."""
    mark = field.mark(OnlyWith)
    return () if mark is None else mark.needs


def describe_needs(field: Field) -> str:
    """Such as 'optim.name sgd and optim.momentum above 0'; empty if there are no needs."""
    return " and ".join(" or ".join(map(str, alternatives)) for alternatives in needs_of(field))


def why_idle(name: str, values: Mapping[str, Any], fields: Mapping[str, Field]) -> str | None:
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
            is_single = len(reasons) == 1
            return reasons[0] if is_single else f"it needs {' or '.join(map(str, alternatives))}"
    return None


def _why_unmet(
    condition: Condition, values: Mapping[str, Any], fields: Mapping[str, Field]
) -> str | None:
    other = condition.name
    if other not in values:
        return None
    if other in fields and (reason := why_idle(other, values, fields)) is not None:
        return reason
    if condition.test(values[other]):
        return None
    return f"it needs {condition}, and {other} is {show(values[other])}"


def show(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "''"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value) or "''"


NO_INIT = Condition("init.weights", "left out", lambda weights: not weights)
"""All weights are fresh."""
TRAINS_CONVOLUTIONS: Requirement = (NO_INIT, one_of("init.freeze", "none"))
