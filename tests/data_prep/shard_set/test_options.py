"""Fields that are declared once, and the command lines that derive from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from data_prep.shard_set.fields import (
    Limit,
    above,
    at_least,
    at_most,
    below,
    between,
    check_fields,
    choice_of,
    did_you_mean,
    fields_of,
    within,
)
from data_prep.shard_set.options import (
    Named,
    NotAnOption,
    Rest,
    read_options,
    words_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Common:
    """What all cooks say."""

    heat: Annotated[float, above(0), at_most(300)] = 180.0
    """Degrees."""
    knife: Path | None = None
    """What cuts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cook(Common):
    """Cook a meal."""

    place: Annotated[Path, Named("PLACE")]
    """Where to cook."""
    size: Annotated[int | None, within(1, 9), Named("--size", "PERSONS")] = None
    """For how many
    persons."""
    style: Literal["raw", "done"] = "done"
    """How it is cooked."""
    salts: Annotated[tuple[str, ...], Named("--salt")] = ()
    """May be given again."""
    lid: bool = True
    """Use a lid."""
    quick: bool = False
    """Be quick."""
    pot: Annotated[str, NotAnOption] = "pot"
    """The pot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Start something."""

    command: Annotated[tuple[str, ...], Rest("WORD …")]
    """What to start."""
    often: int = 1
    """How often."""


def read(*words: str) -> Cook:
    return read_options("kitchen", Cook, words)


def test_options_are_the_fields() -> None:
    words = ("~", "--heat=60", "--size", "2", "--style", "raw", "--salt=a", "--salt=b", "--no-lid")
    assert read("here") == Cook(place=Path("here"))
    assert read(*words, "--quick") == Cook(
        place=Path.home(), heat=60.0, size=2, style="raw", salts=("a", "b"), lid=False, quick=True
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "required: PLACE"),
        (("x", "--heat", "hot"), "error: --heat is 'hot'; expected a number"),
        (("x", "--heat", "301"), "error: --heat is 301.0; expected above 0, at most 300"),
        (("x", "--heat", "inf"), "error: --heat is 'inf'; expected a finite number"),
        (("x", "--size", "0"), "error: --size is 0; expected 1 to 9"),
        (("x", "--style", "rwa"), "--style is 'rwa'; expected one of raw, done; did you mean raw?"),
        (("",), "error: the path is empty; give . for the current folder"),
        (("x", "--pot", "y"), "unknown option --pot"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read(*words)
    assert sentence in capsys.readouterr().err


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Cook a meal.",
        "PLACE Where to cook.",
        "--heat N Degrees. Default: 180.0.",
        "--size PERSONS For how many persons.",
        "--style {raw,done} How it is cooked. Default: done.",
        "--lid, --no-lid Use a lid. Default: yes.",
    ):
        assert words in text
    assert "--pot" not in text


def test_the_source_is_read_for_help_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another one by now, or none."""
    monkeypatch.setattr("inspect.getsource", lambda _: 1 / 0)
    assert read("here", "--quick") == Cook(place=Path("here"), quick=True)


def test_words_give_the_options_back() -> None:
    options = Cook(place=Path("x"), heat=60.0, size=3, knife=Path("-a b"))
    words = words_of(options, Common)
    assert words == ["--heat=60.0", "--knife=-a b"]
    assert read_options("kitchen", Common, words) == Common(heat=60.0, knife=Path("-a b"))


def test_the_rest_of_the_words_is_one_field() -> None:
    start = read_options("kitchen", Start, ["--often", "2", "run", "--often", "3"])
    assert start == Start(command=("run", "--often", "3"), often=2)


@pytest.mark.parametrize(
    ("limit", "expected", "right", "wrong"),
    [
        (above(0), "above 0", (0.1,), (0, -1, float("inf"), float("nan"))),
        (at_least(0), "0 or more", (0, 5), (-1, float("inf"))),
        (at_least(2), "at least 2", (2,), (1,)),
        (at_most(1_000_000), "at most 1,000,000", (1e6,), (1e6 + 1, float("nan"))),
        (below(1), "below 1", (0.9,), (1,)),
        (between(0, 1), "between 0 and 1", (0.5,), (0, 1)),
        (within(0, 1), "0 to 1", (0, 1), (-0.1, 1.1, float("nan"))),
        (choice_of(1, 10), "1 or 10", (1, 10), (2,)),
    ],
)
def test_limits(
    limit: Limit, expected: str, right: tuple[float, ...], wrong: tuple[float, ...]
) -> None:
    assert limit.expected == expected
    assert all(map(limit.holds, right))
    assert not any(map(limit.holds, wrong))


def test_fields_are_checked_wherever_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"\A<heat> is -1; expected above 0, at most 300\Z"):
        check_fields(Cook(place=Path(), heat=-1), "<{}>".format)
    with pytest.raises(ValueError, match=r"\Asize is 0; expected 1 to 9, or none\Z"):
        check_fields(Cook(place=Path(), size=0), str, ", or none")
    check_fields(Cook(place=Path(), size=None), str)
    assert fields_of(Cook)["size"].help == "For how many persons."


def test_the_nearest_word_is_named_if_one_is_near() -> None:
    assert did_you_mean("adma", ["sgd", "adam", "adamw"], "; ", " ") == "; did you mean adam? "
    assert did_you_mean("lion", ["sgd", "adam", "adamw"], "; ", " ") == ""
