"""Between the events of a run and the rows of `RUN/events.jsonl`, objects of JSON."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from data_prep.shard_set.fields import Field, fields_of
from pipeline.run.events import EVENT_TYPES, MAY_BE_NAN, Alarm, AlarmReason, Before, Event

_OF_EVERY_ROW = {"kind", "step", "epoch", "time"}

_TIME_END = 253_402_300_800
"""The year 10000, which no date has."""

_EXPECTED = {int: "a number", float: "a number", str: "a text", bool: "true or false"}


def row_of(event: Event) -> dict[str, Any]:
    """The event as an object of JSON."""
    row = {"kind": event.kind, "step": event.step, "epoch": round(event.epoch, 6)}
    row["time"] = event.time
    if isinstance(event, Alarm):
        row["reason"] = event.reason
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if value is not None or field.default is not None:
            row.setdefault(field.name, value)
    finite: dict[str, Any] = _finite(row)
    return finite


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None: JSON has no name for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def event_of(row: object) -> Event | None:
    """The event in a row; None if its kind is that of a newer version.

    Fields of newer versions are left out. Raises `ValueError` if the row is no event.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it is {row!r:.40}, expected an object")
    if lacking := _OF_EVERY_ROW - row.keys():
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    found = _type_of(row)
    if found is None:
        return None
    is_alarm = issubclass(found, Alarm)
    name_of_row = f"an alarm of {row['reason']}" if is_alarm else f"a '{row['kind']}' row"
    values: dict[str, Any] = {}
    for name, field in fields_of(found).items():
        if name in row:
            values[name] = _read(row[name], field, f"{name} of {name_of_row}")
        elif (before := field.mark(Before)) is not None:
            values[name] = before.value
        elif field.default is dataclasses.MISSING:
            lacking.add(name)
    if lacking:
        raise ValueError(f"{name_of_row} lacks {', '.join(sorted(lacking))}")
    if not 0 <= values["time"] < _TIME_END:
        raise ValueError(f"time of {name_of_row} is {row['time']!r:.40}, expected Unix seconds")
    return found(**values)


def _type_of(row: Mapping[str, Any]) -> type[Event] | None:
    kind, reason = row["kind"], row.get("reason")
    if not isinstance(kind, str):
        raise ValueError(f"its kind is {kind!r:.40}, expected a text")
    for found in EVENT_TYPES:
        if found.kind == kind and (not issubclass(found, Alarm) or found.reason == reason):
            return found
    if kind == Alarm.kind:
        expected = ", ".join(get_args(AlarmReason))
        raise ValueError(f"the reason of an alarm is {reason!r:.40}, expected {expected}")
    return None


def _read(value: Any, field: Field, label: str) -> Any:
    """A field's value from a row; raises `ValueError` if it is not of the field's type."""
    if value is None and MAY_BE_NAN in field.marks:
        return math.nan
    if value is None and field.is_optional and field.default is not None:
        return None  # a field with the default None is left out instead
    if not _is_of(value, field.kind):
        expected = ", ".join(field.choices) or _EXPECTED.get(field.kind, "an object of numbers")
        raise ValueError(f"{label} is {value!r:.40}, expected {expected}")
    field.check(value, label)
    if get_origin(field.kind) is Mapping:  # a newer version may have other names in it
        names = get_args(get_args(field.kind)[0])
        return {name: part for name, part in value.items() if name in names}
    return value


def _is_of(value: object, kind: Any) -> bool:
    if kind in (int, float):  # Python also reads NaN and infinities, which are not JSON
        is_number = type(value) is int or (kind is float and type(value) is float)
        return is_number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is Mapping:
        return isinstance(value, dict) and all(
            part is None or _is_of(part, float) for part in value.values()
        )
    return isinstance(value, kind)
