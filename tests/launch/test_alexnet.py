"""One command for all, and the package that it is installed with."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from data_prep.__main__ import parse
from launch.__main__ import main
from launch.alexnet import DOORS, answer, help_text

ROOT = Path(__file__).resolve().parents[2]
STARTED_BY_LAUNCH = {"pipeline.doctor", "pipeline.start_ranks"}
"""`alexnet doctor` is the launcher's, which starts the ranks of `pipeline.doctor`."""
FOR_DEVELOPERS = {"pipeline.metrics.tables"}
"""They write parts of the documentation."""


def test_every_command_has_a_door() -> None:
    guarded = {
        ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for package in ("data_prep", "launch", "pipeline")
        for source in (ROOT / package).rglob("*.py")
        if re.search(r'^if __name__ == "__main__"', source.read_text(), re.MULTILINE)
    }
    assert {door.module for door in DOORS.values()} == guarded - STARTED_BY_LAUNCH - FOR_DEVELOPERS


@pytest.mark.parametrize("name", [name for name in DOORS if DOORS[name].module == "data_prep"])
def test_doors_into_data_prep_are_its_commands(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*DOORS[name].words, "--help"])
    assert f"data_prep {name}" in capsys.readouterr().out


def test_all_commands_are_on_one_screen() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", ["watch", "follow", "compare", "explain", "prometheus"])
def test_a_command_is_explained_in_whole_sentences(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    description = capsys.readouterr().out.split("\n\n")[1]
    assert description.endswith(".")


def test_a_misspelt_command_gets_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["evalute"]) == 2
    assert "did you mean evaluate?" in capsys.readouterr().err


def requirements(name: str, extras: set[str]) -> Iterator[str]:
    """All packages that a package needs with these extras, itself included."""
    seen = set()
    wanted = [(name, frozenset(extras))]
    while wanted:
        name, chosen = wanted.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        yield canonicalize_name(name)
        try:
            listed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
        wanted += [
            (requirement.name, frozenset(requirement.extras))
            for requirement in map(Requirement, listed)
            if requirement.marker is None
            or any(requirement.marker.evaluate({"extra": extra}) for extra in chosen | {""})
        ]


def test_every_package_is_pinned_by_name_and_version_alone() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[0-9.]+(b[0-9]+|post[0-9]+)?( ; [^/]+)?", line) for line in lines
    )
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    needed = set(requirements("alexnet-2012", extras)) - {"alexnet-2012"}
    assert needed <= {line.partition("==")[0] for line in lines}
