"""Between the events of a run and the rows of `RUN/events.jsonl`, objects of JSON."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pipeline.run.events import EVENT_TYPES, MAY_BE_NAN, Alarm, AlarmReason, Before, Event, Row


@dataclass(frozen=True, slots=True)
class _Field:
    """What a row may have under a name."""

    name: str
    fits: Callable[[object], bool]
    """Whether a value is of its type; null is not where it stands for a field that is left out."""
    expected: str
    may_be_nan: bool
    is_required: bool
    older: Mapping[str, object]
    """Its value in rows from before it was declared, if there are such rows."""

    @classmethod
    def of(cls, field: dataclasses.Field[Any], annotated: Any) -> Self:
        hint, *marks = get_args(annotated)
        before = [mark.value for mark in marks if isinstance(mark, Before)]
        older = {field.name: before[0]} if before else {}
        fits, expected = _test_of(hint if field.default is not None else get_args(hint)[0])
        return cls(
            name=field.name,
            fits=fits,
            expected=expected,
            may_be_nan=MAY_BE_NAN in marks,
            is_required=field.default is not None and not older,
            older=older,
        )


def _fields_of(of: type[Row]) -> list[_Field]:
    hints = get_type_hints(of, include_extras=True)
    return [_Field.of(field, hints[field.name]) for field in dataclasses.fields(of)]


def row_of(event: Event) -> dict[str, Any]:
    """The event as an object of JSON."""
    values = {
        field.name: getattr(event, field.name)
        for field in dataclasses.fields(event)
        if field.default is not None or getattr(event, field.name) is not None
    }
    row = {"kind": event.kind, **{name: values.pop(name) for name in ("step", "epoch", "time")}}
    if isinstance(event, Alarm):
        row["reason"] = event.reason
    finite: dict[str, Any] = _finite(row | {"epoch": round(event.epoch, 6)} | values)
    return finite


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has no name for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def event_of(row: object) -> Event | None:
    """The event that a row tells of; None if a newer version has added its kind.

    Of other kinds, fields that a newer version has added are left out. Raises `ValueError` if it is
    no event.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it is {row!r:.40}, expected an object")
    if lacking := {"kind", *(field.name for field in _FIELDS[Row])} - row.keys():
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    found = _type_of(row)
    if found is None:
        return None
    values: dict[str, Any] = {}
    for field in _FIELDS[found]:
        if field.name not in row:
            values |= field.older
        elif field.may_be_nan and row[field.name] is None:
            values[field.name] = math.nan
        elif field.fits(row[field.name]):
            values[field.name] = row[field.name]
        else:
            text = f"{row[field.name]!r:.40}, expected {field.expected}"
            raise ValueError(f"{field.name} of {_name(row)} is {text}")
    if lacking := {field.name for field in _FIELDS[found] if field.is_required} - row.keys():
        raise ValueError(f"{_name(row)} lacks {', '.join(sorted(lacking))}")
    return found(**values)


def _type_of(row: Mapping[str, Any]) -> type[Event] | None:
    if not isinstance(row["kind"], str):
        raise ValueError(f"its kind is {row['kind']!r:.40}, expected a text")
    reason = row.get("reason")
    for found in EVENT_TYPES:
        is_kind = found.kind == row["kind"]
        if is_kind and (not issubclass(found, Alarm) or found.reason == reason):
            return found
    if row["kind"] == Alarm.kind:
        expected = ", ".join(get_args(AlarmReason))
        raise ValueError(f"the reason of an alarm is {reason!r:.40}, expected {expected}")
    return None


def _test_of(hint: Any) -> tuple[Callable[[object], bool], str]:
    """Whether a value is of the type `hint`, and what such a value is."""
    if get_origin(hint) in (Union, types.UnionType):
        fits, expected = _test_of(get_args(hint)[0])
        return (lambda value: value is None or fits(value)), expected
    if get_origin(hint) is Literal:
        return get_args(hint).__contains__, ", ".join(get_args(hint))
    if get_origin(hint) is Mapping:
        fits, _ = _test_of(get_args(hint)[1])
        return (
            lambda value: isinstance(value, dict) and all(map(fits, value.values())),
            "an object of numbers",
        )
    if hint is bool:
        return (lambda value: isinstance(value, bool)), "true or false"
    if hint is str:
        return (lambda value: isinstance(value, str)), "a text"
    return _is_number, "a number"


def _is_number(value: object) -> bool:
    """JSON has no other; Python reads NaN and infinities from it, too."""
    return isinstance(value, int | float) and -math.inf < value < math.inf


def _name(row: Mapping[str, Any]) -> str:
    is_alarm = row["kind"] == Alarm.kind
    return f"an alarm of {row['reason']}" if is_alarm else f"a '{row['kind']}' row"


_FIELDS: Mapping[type[Row], list[_Field]] = {of: _fields_of(of) for of in (Row, *EVENT_TYPES)}
