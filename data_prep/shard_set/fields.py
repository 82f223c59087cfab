"""Fields of dataclasses, each declared once: its limits, its meaning, and how text becomes a value.

Marks in the type of a field are its limits, such as `Annotated[float, above(0)]`; the docstring
below it is its meaning. Checks, command lines, help and errors derive from both.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data_prep.shard_set.files import path_option

T = TypeVar("T")

_MAX_NAMED = 5
"""Names that an error shows."""

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Limit:
    """A mark: what every value of the field must be."""

    expected: str
    holds: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Reads:
    """A mark: makes the value from the text that a user gives; raises `ValueError`."""

    read: Callable[[str], Any]


def above(low: float) -> Limit:
    return Limit(f"above {low:,}", lambda value: low < value < math.inf)


def at_least(low: float) -> Limit:
    expected = f"at least {low:,}" if low else "0 or more"
    return Limit(expected, lambda value: low <= value < math.inf)


def below(high: float) -> Limit:
    return Limit(f"below {high:,}", lambda value: value < high)


def at_most(high: float) -> Limit:
    return Limit(f"at most {high:,}", lambda value: value <= high)


def between(low: float, high: float) -> Limit:
    """Both ends excluded."""
    return Limit(f"between {low} and {high}", lambda value: low < value < high)


def within(low: float, high: float, what: str = "") -> Limit:
    """Both ends included."""
    return Limit(f"{what}{low} to {high}", lambda value: low <= value <= high)


def choice_of(*values: object) -> Limit:
    return Limit(" or ".join(map(str, values)), lambda value: value in values)


SEED = Limit("0 or more, below 2**63", lambda value: 0 <= value < 1 << 63)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a dataclass, or of a group within it."""

    name: str
    """With that of its group before it, such as `optim.momentum`."""
    kind: Any
    """Its type without marks, and without None."""
    is_optional: bool
    """Whether it may be None."""
    marks: tuple[object, ...]
    owner: type
    """The dataclass that declares it."""
    default: Any
    """`dataclasses.MISSING` if a value must be given."""

    def mark(self, kind: type[T]) -> T | None:
        """Its first mark of this kind."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)

    @property
    def help(self) -> str:
        return documentation(self.owner)[self.name.rpartition(".")[2]]

    @property
    def choices(self) -> tuple[str, ...]:
        """The names of which it holds one; empty if it holds something else."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def check(self, value: Any, label: str, or_none: str = "") -> None:
        """Raise `ValueError` if the value is outside the field's limits.

        `or_none` is added to what is expected of a field that may be None.
        """
        limits = [mark for mark in self.marks if isinstance(mark, Limit)]
        if (value is None and self.is_optional) or all(limit.holds(value) for limit in limits):
            return
        expected = ", ".join(limit.expected for limit in limits)
        shown = "empty" if value == "" else repr(value)
        raise wrong(label, shown, f"{expected}{or_none if self.is_optional else ''}")

    def read(self, text: str, label: str) -> Any:
        """The value that `text` stands for; raises `ValueError` if it has another type."""
        if (reads := self.mark(Reads)) is not None:
            return reads.read(text)
        if get_origin(self.kind) is tuple:
            parts = (part.strip() for part in text.split(","))
            return tuple(_read(part, get_args(self.kind)[0], label) for part in parts if part)
        return _read(text, self.kind, label)


def _read(text: str, kind: Any, label: str) -> Any:
    if kind is str:
        return text
    if kind is Path:
        return path_option(text)
    if kind is bool:
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        raise wrong(label, f"'{text}'", "true or false")
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        expected = f"one of {', '.join(get_args(kind))}"
        raise wrong(label, f"'{text}'", f"{expected}{did_you_mean(text, get_args(kind), '; ')}")
    assert kind in (int, float), f"{label} has a type that no command line can give: {kind}"
    try:
        value = kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise wrong(label, f"'{text}'", expected) from None
    if not math.isfinite(value):
        raise wrong(label, f"'{text}'", "a finite number")
    return value


def wrong(label: str, shown: str, expected: str) -> ValueError:
    """The error for a value that is not allowed."""
    return ValueError(f"{label} is {shown}; expected {expected}")


def did_you_mean(word: str, known: Collection[str], before: str = "", after: str = "") -> str:
    """'did you mean …?' of the known word nearest to `word`; empty if none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"{before}did you mean {near[0]}?{after}" if near else ""


def name_some(names: Iterable[str]) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(names)
    num_more = len(names) - _MAX_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def fields_of(kind: type) -> dict[str, Field]:
    """Every field of a dataclass, and of the groups that it holds, by its dotted name."""
    return _fields_of(kind, "")


@functools.cache
def _fields_of(kind: type, prefix: str) -> dict[str, Field]:
    found: dict[str, Field] = {}
    hints = get_type_hints(kind, include_extras=True)
    for entry in dataclasses.fields(kind):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= _fields_of(hint, f"{name}.")
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        inner, is_optional, marks = _taken_apart(hint)
        found[name] = Field(name, inner, is_optional, marks, kind, default)
    return found


def _taken_apart(hint: Any) -> tuple[Any, bool, tuple[object, ...]]:
    """A type without None and marks, whether it had None, and its marks."""
    if get_origin(hint) is Annotated:
        inner, is_optional, marks = _taken_apart(get_args(hint)[0])
        return inner, is_optional, (*marks, *hint.__metadata__)
    if get_origin(hint) in (Union, types.UnionType):
        (option,) = (each for each in get_args(hint) if each is not types.NoneType)
        inner, _, marks = _taken_apart(option)
        return inner, True, marks
    return hint, False, ()


def check_fields(group: Any, label: Callable[[str], str], or_none: str = "") -> None:
    """Raise `ValueError` if a field of the dataclass is outside its limits, as `Field.check` does.

    `label` turns the name of a field into the one that users know.
    """
    for name, field in fields_of(type(group)).items():
        if "." not in name:  # a group has checked its own
            field.check(getattr(group, name), label(name), or_none)


@functools.cache
def documentation(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, by name: only its source has them."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        body = _definition(parent).body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = ast.literal_eval(following.value) if isinstance(following, ast.Expr) else ""
                found[statement.target.id] = " ".join(str(text).split())
    return found


def summary_of(thing: Callable[..., object]) -> str:
    """The first paragraph of a class's or function's docstring, from its source: -OO keeps none."""
    return (ast.get_docstring(_definition(thing)) or "").partition("\n\n")[0].replace("\n", " ")


def _definition(thing: Callable[..., object]) -> ast.ClassDef | ast.FunctionDef:
    (definition,) = ast.parse(inspect.getsource(thing)).body
    assert isinstance(definition, ast.ClassDef | ast.FunctionDef)
    return definition
