"""The documents name what is there: rooms, functions, files, exceptions, links and commands."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pipeline.ranks.failure
from tests.test_architecture import MODULES, ROOMS, ROOT, parse

MAP = ROOT / "docs" / "architecture.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OF_ROOMS = sorted(
    path
    for package in ("data_prep", "pipeline", "launch", "benchmarks", "tests")
    for path in (ROOT / package).rglob("README.md")
)


def short(room: str) -> str:
    """As the map calls it: without the package, where that is clear."""
    _, _, name = room.partition(".")
    return room if name in ("", "__main__") else name


def row_of(room: str, below: tuple[str, ...]) -> str:
    docstring = ast.get_docstring(parse(MODULES[room])) or ""
    sentence = " ".join(docstring.partition("\n\n")[0].split())
    return f"| `{room}` | {sentence} | {', '.join(map(short, below)) or '–'} |"


def test_the_map_has_each_room_with_its_sentence_and_those_below() -> None:
    rows = [line for line in MAP.read_text().splitlines() if re.match(r"\| `[\w.]+` \|", line)]
    expected = [row_of(room, below) for room, below in ROOMS.items()]
    assert rows == expected, "the table of docs/architecture.md should be:\n" + "\n".join(expected)


def names_in(source: Path) -> Iterator[str]:
    """All that a module defines: `function`, `Class`, `Class.method`, `CONSTANT`."""
    for node in parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            members = (member for member in node.body if isinstance(member, ast.FunctionDef))
            yield from (f"{node.name}.{member.name}" for member in members)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (ast.unparse(target) for target in targets)


def test_each_function_that_the_map_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", MAP.read_text())
    assert len(named) > 20
    for path, name in named:
        assert name in names_in(ROOT / path), f"{path}:{name}"


def files_for(addition: str) -> set[str]:
    """The files that the map names for it, a folder standing for a new module."""
    section = MAP.read_text().partition("## Where do I add …")[2].partition("\n## ")[0]
    (row,) = (line for line in section.splitlines() if line.startswith(f"| **{addition}**"))
    where = row.split(" | ")[1]
    files = set(re.findall(r"`((?:data_prep|pipeline|launch)/[\w/.-]+)`", where))
    assert all((ROOT / path).exists() for path in files), row
    assert 0 < len(files) <= 3 or "more than three" in where, row
    return files


ADDITIONS = (
    *("a network", "an optimizer", "a source", "an encoding", "a reader", "a rank metric"),
    *("a job metric", "a SLURM option", "a field in the checkpoint", "an exit code", "a statistic"),
)


@pytest.mark.parametrize("addition", ADDITIONS)
def test_each_addition_touches_three_files_at_most_or_says_why_not(addition: str) -> None:
    assert files_for(addition)


NAMES = {
    "a network": ("pipeline/config/model.py", "ModelName"),
    "an optimizer": ("pipeline/config/optim.py", "OptimizerName"),
    "a reader": ("pipeline/config/data.py", "ReaderName"),
    "an encoding": ("data_prep/shard_set/manifest.py", "Encoding"),
    "an exit code": ("pipeline/run/ending.py", "JobOutcome"),
}
"""What is added by a name, and where the names are declared."""


@pytest.mark.slow
def test_the_type_checker_names_each_place_that_a_new_name_must_go_to(tmp_path: Path) -> None:
    """In a copy with a name more of each kind: errors in the files of the map, and in no other."""
    for package in ("data_prep", "launch", "pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for addition, (path, literal) in NAMES.items():
        text = (tmp_path / path).read_text()
        assert text.count(f"{literal} = Literal[") == 1
        longer = text.replace(f"{literal} = Literal[", f'{literal} = Literal["{addition}", ')
        (tmp_path / path).write_text(longer)
    packages = ("-p", "data_prep", "-p", "launch", "-p", "pipeline")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *packages, "--cache-dir", tmp_path / "cache"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for addition, (path, _) in NAMES.items():
        errors = {
            line.partition(":")[0] for line in found.splitlines() if f"['{addition}']" in line
        }
        assert errors, found
        assert errors | {path} <= files_for(addition), found


@pytest.mark.parametrize("document", [*DOCUMENTS, *OF_ROOMS], ids=lambda path: str(path.name))
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", document.read_text()
    ):
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor[1:] in map(as_anchor, headings), f"{target}{anchor}"


def as_anchor(heading: str) -> str:
    """As GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("document", OF_ROOMS, ids=lambda path: path.parent.name)
def test_a_room_s_page_is_short_leads_to_the_map_and_names_files_that_are_there(
    document: Path,
) -> None:
    text = document.read_text()
    assert len(text.splitlines()) <= 15
    assert "docs/architecture.md" in text
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert (document.parent / name).exists(), name


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}


@functools.cache
def exceptions() -> Mapping[str, tuple[str, str]]:
    """The name, base and module of each exception class of the product that others may see."""
    found = {}
    for module, source in MODULES.items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.ClassDef) and node.bases and not node.name.startswith("_"):
                base = ast.unparse(node.bases[0])
                if base == "Exception" or base.endswith("Error"):
                    found[node.name] = (base, module)
    return found


def test_the_tree_of_exceptions_is_whole() -> None:
    tree, base = {}, ""
    for line in (pipeline.ranks.failure.__doc__ or "").splitlines():
        match line.split():
            case [name, module, *_] if line.startswith("      "):
                tree[name] = (base, module)
            case [name, *_] if line.startswith("    "):
                base = name
    assert tree == exceptions()


def test_a_commit_is_checked_by_what_lints() -> None:
    makefile = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    commands = re.findall(r"^\t\$\(BIN\)/(.*)$", makefile, re.MULTILINE)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: \.venv/bin/(.*)$", hooks, re.MULTILINE) == commands
