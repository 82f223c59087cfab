"""What a fuzzer of one kind of file is, and what it may find of a value that was read."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from data_prep.shard_set.files import describe
from tests.fuzz.mutation import Change

_MOST_OF_A_SENTENCE = 2000


class WrongValueError(AssertionError):
    """What was read is not what the file says, or not what it must be."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, in a folder that is made for it."""

    corpus: Sequence[bytes]
    """Whole files, which must be read without an error."""
    read: Callable[[bytes], object]
    """Reads a file with this content, and raises `WrongValueError` if the value is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Harness:
    """A fuzzer of one kind of file."""

    name: str
    prepare: Callable[[Path], Target]
    """In an empty folder."""
    errors: tuple[type[Exception], ...]
    """How the reader may refuse; no other class, a subclass neither."""
    changes: tuple[Change, ...] = ()
    """By what is known of the format; contents are changed blindly, too."""


def check_sentence(error: Exception) -> None:
    """Raise `WrongValueError` unless the error is one line of moderate length."""
    text = describe(error)
    if len(text.splitlines()) != 1 or len(text) > _MOST_OF_A_SENTENCE:
        raise WrongValueError(f"an error that is no sentence: {text[:300]!a}") from error


def expect(holds: object, what: object) -> None:
    """Raise `WrongValueError` unless it holds."""
    if not holds:
        raise WrongValueError(str(what))


def check_types(value: Any, hint: Any, where: str = "value") -> None:
    """Raise `WrongValueError` unless the value is what its annotation says, all through."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return
    if origin is Annotated:
        check_types(value, arguments[0], where)
    elif origin is Literal:
        expect(value in arguments, f"{where} is {value!r}, expected {arguments}")
    elif origin in (Union, types.UnionType):
        faults = [fault for each in arguments if (fault := _fault(value, each, where))]
        expect(len(faults) < len(arguments), "; ".join(faults))
    elif dataclasses.is_dataclass(hint):
        expect(type(value) is hint, f"{where} is {value!r}, expected {hint}")
        for name, inner in get_type_hints(hint, include_extras=True).items():
            if name in {field.name for field in dataclasses.fields(hint)}:
                check_types(getattr(value, name), inner, f"{where}.{name}")
    elif origin is tuple:
        expect(isinstance(value, tuple), f"{where} is {value!r}, expected a tuple")
        inside = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        expect(len(inside) == len(value), f"{where} has {len(value)} parts, not {len(inside)}")
        for part, inner in zip(value, inside, strict=True):
            check_types(part, inner, where)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        expect(isinstance(value, dict), f"{where} is {value!r}, expected a mapping")
        for key, part in value.items():
            names = get_origin(arguments[0]) is Literal  # of which newer versions may have more
            check_types(key, str if names else arguments[0], f"a key of {where}")
            check_types(part, arguments[1], f"{where}[{key!r}]")
    elif origin is np.ndarray:
        expect(isinstance(value, np.ndarray), f"{where} is {value!r}, expected an array")
    elif origin in (list, collections.abc.Sequence):
        expect(isinstance(value, list | tuple), f"{where} is {value!r}, expected a list")
        for part in value:
            check_types(part, arguments[0], where)
    else:
        kinds = (int, float) if hint is float else (types.NoneType if hint is None else hint,)
        is_bool = isinstance(value, bool) and hint is not bool
        expect(isinstance(value, kinds) and not is_bool, f"{where} is {value!r}, expected {hint}")


def _fault(value: Any, hint: Any, where: str) -> str | None:
    try:
        check_types(value, hint, where)
    except WrongValueError as error:
        return str(error)
    return None
