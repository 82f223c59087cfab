"""Which way imports go, who reads the environment, and that importing does nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from data_prep.manifest import Encoding
from pipeline.config import Config
from pipeline.overrides import leaf_types

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_prep", "launch", "pipeline")
OURS = (*PACKAGES, "benchmarks", "tests")

LAUNCHER_VARIABLES = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}

MAY_IMPORT = {
    "data_prep": {"data_prep"},
    "pipeline": {
        "pipeline",
        "data_prep.manifest",
        "data_prep.files",
        "data_prep.foreign",
        "data_prep.streams",
        "data_prep.beton_format",
        "data_prep.pixels",
    },
    "launch": {"launch", "pipeline", "data_prep"},
}
"""Names below which a package may import from ours; `launch` is held to modules without torch."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = [source for package in PACKAGES for source in sources(package)]
each_source = pytest.mark.parametrize("source", SOURCES, ids=module_name)


def parse(source: Path) -> ast.Module:
    return ast.parse(source.read_text(), str(source))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in the file, and `module.name` for its names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints, started without a launcher's variables."""
    environment = {
        name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_OF_EXTRAS = ("ffcv", "jinja2", "llvmlite", "matplotlib", "numba", "triton")


def importable(package: str) -> list[str]:
    """All modules of a package but those of the extras, which may be missing."""
    return [
        module_name(source)
        for source in sources(package)
        if not any(name.startswith(_OF_EXTRAS) for name in imported(parse(source)))
    ]


@pytest.mark.slow
@each_source
def test_imports_go_in_one_direction(source: Path) -> None:
    package = source.relative_to(ROOT).parts[0]
    for name in imported(parse(source)):
        if name.split(".")[0] in OURS:
            assert any(f"{name}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[package]), (
                f"{module_name(source)} imports {name}"
            )


def test_launch_works_without_torch() -> None:
    """Really imported, so that what its imports import counts too."""
    loaded = run_python(
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print('torch' in sys.modules, 'launch.__main__' in sys.modules)",
        *importable("launch"),
    )
    assert loaded == "False True\n"


@pytest.mark.parametrize("name", ["pipeline.config", "pipeline.overrides", "pipeline.recipes"])
def test_a_config_needs_no_torch(name: str) -> None:
    assert run_python(f"import sys, {name}\nprint('torch' in sys.modules)") == "False\n"


@pytest.mark.slow
@each_source
def test_only_one_module_reads_the_launchers_variables(source: Path) -> None:
    if module_name(source) == "pipeline.distributed":
        return
    words = {node.value for node in ast.walk(parse(source)) if isinstance(node, ast.Constant)}
    assert not words & LAUNCHER_VARIABLES


@each_source
def test_a_module_only_defines_things(source: Path) -> None:
    """Its statements are imports, definitions, constants, their docstrings and the main guard."""
    for node in parse(source).body:
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
            continue
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), ast.unparse(node)
            continue
        allowed = (
            ast.Import
            | ast.ImportFrom
            | ast.FunctionDef
            | ast.AsyncFunctionDef
            | ast.ClassDef
            | ast.Assign
            | ast.AnnAssign
        )
        assert isinstance(node, allowed), ast.unparse(node)


CHOICES = {"encoding": Encoding} | {
    name: hint for name, hint in leaf_types(Config) if get_origin(hint) is Literal
}
"""The fields that hold one of some names, and which."""


@pytest.mark.slow
@each_source
def test_code_chooses_by_a_name_in_a_match_that_knows_all_names(source: Path) -> None:
    """A comparison with one name takes all others, those to come too, for one and the same.

    `device` is left out, as torch's devices have an attribute of that name, and so is the module
    that refuses what cannot be.
    """
    words: dict[str, set[str]] = {}
    for field, hint in CHOICES.items():
        words.setdefault(field.rpartition(".")[2], set()).update(get_args(hint))
    del words["device"]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Match) and name_of(node.subject) in words:
            (last,) = node.cases[-1].body
            assert ast.unparse(last).startswith("assert_never("), ast.unparse(node)
        if isinstance(node, ast.Compare) and module_name(source) != "pipeline.config":
            named = {name_of(side) for side in (node.left, *node.comparators)}
            constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not any(words.get(name, set()) & constants for name in named), ast.unparse(node)


def name_of(side: ast.expr) -> str:
    """The last part of a variable's or an attribute's name; of others nothing."""
    is_named = isinstance(side, ast.Name | ast.Attribute)
    return ast.unparse(side).rpartition(".")[2] if is_named else ""


@pytest.mark.slow
def test_importing_everything_starts_and_opens_nothing() -> None:
    report = run_python(
        "import importlib, os, random, resource, signal, sys, threading\n"
        "import numpy, simplejpeg, torch\n"
        "def state():\n"
        "    return (\n"
        "        threading.active_count(),\n"
        "        len(os.listdir('/proc/self/fd')),\n"
        "        open(f'/proc/self/task/{os.getpid()}/children').read(),\n"
        "        resource.getrlimit(resource.RLIMIT_NOFILE),\n"
        "        [signal.getsignal(number) for number in signal.valid_signals()],\n"
        "        dict(os.environ),\n"
        "        os.getcwd(),\n"
        "        random.getstate(),\n"
        "        str(numpy.random.get_state()),\n"
        "        torch.initial_seed(),\n"
        "        torch.get_num_threads(),\n"
        "        torch.cuda.is_initialized(),\n"
        "        torch.distributed.is_initialized(),\n"
        "    )\n"
        "before = state()\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "for was, now in zip(before, state()): assert was == now, (was, now)\n"
        "print('unchanged')",
        *(name for package in PACKAGES for name in importable(package)),
    )
    assert report == "unchanged\n"


@pytest.mark.slow
@each_source
def test_a_path_option_is_read_as_one(source: Path) -> None:
    """`Path` itself makes a folder of the name `~`, and `located` takes an empty one."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            kinds = [ast.unparse(word.value) for word in node.keywords if word.arg == "type"]
            assert kinds not in (["Path"], ["located"]), ast.unparse(node)


@each_source
def test_modules_are_named_by_what_they_do(source: Path) -> None:
    assert source.stem not in {"util", "utils", "common", "helper", "helpers", "misc", "base"}


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {module_name(source) for source in SOURCES if source.name == "__init__.py"}
    assert set(settings["tool"]["setuptools"]["packages"]) == found


@pytest.mark.slow
def test_every_folder_of_modules_is_a_package() -> None:
    for source in SOURCES:
        assert (source.parent / "__init__.py").exists()
