"""The documents name what is there: rooms, functions, files, exceptions, links and commands."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pipeline.ranks.failure
from tests.pipeline.trained_run import unpack_usable_run
from tests.test_architecture import MODULES, ROOMS, ROOT, parse

MAP = ROOT / "docs" / "architecture.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
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


@pytest.mark.slow
def test_the_programs_on_the_page_of_the_python_interface_work(tmp_path: Path) -> None:
    """On a shard set, a run and an image of the fixtures."""
    fixtures = ROOT / "tests" / "formats" / "v1"
    (tmp_path / "shards").symlink_to(fixtures / "shards" / "jpeg")
    (tmp_path / "runs").mkdir()
    unpack_usable_run(tmp_path).rename(tmp_path / "runs" / "first")
    shutil.copy(fixtures / "images" / "train" / "cat" / "0000.jpg", tmp_path / "cat.jpg")
    blocks = re.findall(
        r"(?:^(?: {4}.*)?\n)+", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE
    )
    programs = [textwrap.dedent(block) for block in blocks if "import" in block]
    assert len(programs) == 3
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


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


def test_the_first_page_says_what_each_extra_brings() -> None:
    rows = re.findall(r"^\| (`.*`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {*project["optional-dependencies"]}
    assert extras <= {*named}


def test_a_commit_is_checked_by_what_lints() -> None:
    makefile = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    commands = re.findall(r"^\t\$\(BIN\)/(.*)$", makefile, re.MULTILINE)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: \.venv/bin/(.*)$", hooks, re.MULTILINE) == commands
