"""Values of files against the types of their declarations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.typed import check_types, read_json

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(max_size=3), inner),
)


@dataclass(frozen=True)
class _Inner:
    size: tuple[int, int] | None


@dataclass(frozen=True)
class _Outer:
    names: tuple[str, ...]
    inner: _Inner
    shares: Mapping[str, float]
    kind: Literal["a", "b"] = "a"
    more: Any = None


def test_a_text_is_read_as_json_has_it() -> None:
    assert read_json(b'{"x": [1, {"y": null}], "x": 2}') == {"x": 2}
    assert read_json('"\\ud800"') == "\ud800"
    assert read_json(b"[" * 50 + b"]" * 50)


@pytest.mark.parametrize("num_levels", [51, 300, 700, 100_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}"), ('[0, {"a":', "}]")])
def test_a_text_that_is_too_deep_to_be_taken_apart_is_damaged(
    num_levels: int, opens: str, closes: str
) -> None:
    with pytest.raises(ValueError, match="it has more than 50 levels of lists and objects"):
        read_json(f'{{"x": {opens * num_levels}0{closes * num_levels}}}')


def test_a_right_value_passes() -> None:
    check_types(_Outer(("x",), _Inner((1, 2)), {"y": 1, "z": 0.5}, "b", [object()]), _Outer, "")
    check_types(_Outer((), _Inner(None), {}), _Outer, "")
    check_types([(1, 2.5)], Sequence[tuple[int, float]], "pairs")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (_Outer("x", _Inner(None), {}), "names is 'x', expected tuple[str, ...]"),  # type: ignore[arg-type]
        (_Outer((1,), _Inner(None), {}), "an entry of names is 1, expected str"),  # type: ignore[arg-type]
        (_Outer((), _Inner((1,)), {}), "inner.size is (1,), expected tuple[int, int] | None"),  # type: ignore[arg-type]
        (_Outer((), {}, {}), "inner is {}, expected _Inner"),  # type: ignore[arg-type]
        (_Outer((), _Inner(None), {"a": True}), "shares['a'] is True, expected float"),
        (_Outer((), _Inner(None), {"a": math.nan}), "shares['a'] is nan, expected float"),
        (_Outer((), _Inner(None), {}, "c"), "kind is 'c', expected a or b"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_one_is_named(value: object, sentence: str) -> None:
    with pytest.raises(TypeError) as error:
        check_types(value, _Outer, "")
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (Counter({"a": None}), Counter[str], "x['a'] is None, expected int"),
        (Counter({1: 1}), Counter[str], "a key of x is 1, expected str"),
        ({"a": 1}, Counter[str], "x is {'a': 1}, expected collections.Counter[str]"),
        ({(1, "b")}, set[tuple[int, int]], "an entry of an entry of x is 'b', expected int"),
        ([("a",)], list[tuple[str, str]], "an entry of x is ('a',), expected tuple[str, str]"),
        ((1,), list[int], "x is (1,), expected list[int]"),
    ],
)
def test_what_adds_up_is_looked_into(value: object, hint: Any, sentence: str) -> None:
    with pytest.raises(TypeError) as error:
        check_types(value, hint, "x")
    assert str(error.value) == sentence


def test_no_declaration_is_passed_over() -> None:
    with pytest.raises(AssertionError, match=r"nobody looks into a dict\[str, int\]"):
        check_types({"a": "b"}, dict[str, int], "x")


@given(_JSON)
def test_numbers_are_those_that_can_be_computed_with(value: object) -> None:
    is_number = type(value) in (int, float) and abs(value) < math.inf  # type: ignore[arg-type]
    try:
        check_types(value, float, "x")
    except TypeError:
        assert not is_number
    else:
        assert is_number
