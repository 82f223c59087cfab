"""Values of files: what a text in JSON says, and whether it is of the type that is declared."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

_MOST_LEVELS = 50
"""Of lists and objects within each other; files that are read here have ten."""


def read_json(content: str | bytes) -> Any:
    """What the text says; raises `ValueError` if it is damaged, or deeper than any that is meant.

    Of such a depth Python reads more than it can compare, show or write then.
    """
    with contextlib.suppress(RecursionError):
        found = json.loads(content)
        level = [found]
        for _ in range(_MOST_LEVELS):
            level = [part for each in level for part in _parts(each)]
            if not level:
                return found
    raise ValueError(f"it has more than {_MOST_LEVELS} levels of lists and objects")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_types(value: object, hint: Any, name: str) -> None:
    """Raise `TypeError` with one sentence unless `value`, called `name`, is all through of a type.

    `hint` is made of dataclasses, mappings, counters, tuples, sequences, lists, sets and plain
    types; of arrays only the class is looked at. An integer may stand for a float; a NaN or an
    infinity is none.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check_types(value, inner[0], name)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, hint):
        for field, kind in _hints_of(hint).items():
            check_types(getattr(value, field), kind, f"{name}.{field}" if name else field)
    elif origin in (Mapping, Counter) and isinstance(value, origin):
        of_key, of_part = (*inner, int)[:2]  # a counter declares only its keys
        for key, part in value.items():
            check_types(key, of_key, f"a key of {name}")
            check_types(part, of_part, f"{name}[{key!r:.40}]")
    elif (
        (origin is Sequence and isinstance(value, list | tuple))
        or (origin in (list, set) and isinstance(value, origin))
        or (origin is tuple and isinstance(value, tuple) and inner[-1:] == (...,))
    ):
        for part in value:
            check_types(part, inner[0], f"an entry of {name}")
    elif origin is tuple and isinstance(value, tuple) and len(value) == len(inner):
        for part, kind in zip(value, inner, strict=True):
            check_types(part, kind, f"an entry of {name}")
    elif not _is_plain(value, hint):
        raise TypeError(f"{name} is {value!r:.40}, expected {_words(hint)}")


def _is_plain(value: object, hint: Any) -> bool:
    """The same of a type with nothing inside, or of a choice between types."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, kind) for kind in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if hint is int:
        return type(value) is int
    if origin in (Mapping, Counter, Sequence, list, set, tuple) or dataclasses.is_dataclass(hint):
        return False  # else it was looked into
    assert origin in (None, np.ndarray), f"nobody looks into a {hint}"
    return hint is Any or isinstance(value, types.NoneType if hint is None else origin or hint)


def _is_of(value: object, hint: Any) -> bool:
    try:
        check_types(value, hint, "")
    except TypeError:
        return False
    return True


@functools.cache
def _hints_of(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return (
        hint.__name__
        if isinstance(hint, type) and not get_args(hint)
        else str(hint).replace("collections.abc.", "")
    )
