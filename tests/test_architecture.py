"""Which room imports which, who reads the environment, and that importing does nothing."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest

from data_prep.shard_set.manifest import Encoding
from pipeline.config.schema import FIELDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_prep", "launch", "pipeline")
MOST_LINES = 250
OURS = (*PACKAGES, "benchmarks", "tests")

LAUNCHER_VARIABLES = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}

SHARD_SET = "data_prep.shard_set"

_BASE = ("pipeline.config", SHARD_SET)
_DOOR = "pipeline.data.open"

ROOMS: Mapping[str, tuple[str, ...]] = {
    SHARD_SET: (),
    "data_prep.sources": (SHARD_SET,),
    "data_prep.convert": ("data_prep.sources", SHARD_SET),
    "data_prep.verify": (SHARD_SET,),
    "data_prep.look": (SHARD_SET,),
    "data_prep.adopt": ("data_prep.convert", "data_prep.sources", SHARD_SET),
    "data_prep.beton": ("data_prep.convert", SHARD_SET),
    "data_prep.sharding": ("data_prep.convert", "data_prep.sources", SHARD_SET),
    "data_prep.__main__": (
        *("data_prep.sharding", "data_prep.beton", "data_prep.verify", "data_prep.convert"),
        *("data_prep.adopt", "data_prep.look"),
        *("data_prep.sources", SHARD_SET),
    ),
    "pipeline.config": (SHARD_SET,),
    "pipeline.model": ("pipeline.config",),
    "pipeline.run": _BASE,
    "pipeline.metrics": ("pipeline.run", *_BASE),
    "pipeline.explain": ("pipeline.metrics", "pipeline.run", *_BASE),
    "pipeline.ranks": ("pipeline.run", "pipeline.model", *_BASE),
    "pipeline.optim": ("pipeline.ranks", "pipeline.model", "pipeline.config"),
    "pipeline.data.order": (SHARD_SET,),
    "pipeline.data.augment": ("pipeline.data.order", *_BASE),
    "pipeline.data.cache": ("pipeline.data.order", *_BASE),
    "pipeline.data.readers": (
        *("pipeline.data.order", "pipeline.data.augment", "pipeline.data.cache", *_BASE),
    ),
    "pipeline.data.batches": (
        *("pipeline.data.order", "pipeline.data.augment", "pipeline.data.cache"),
        *("pipeline.data.readers", "pipeline.ranks", SHARD_SET),
    ),
    _DOOR: (
        *("pipeline.data.order", "pipeline.data.augment", "pipeline.data.cache"),
        *("pipeline.data.readers", "pipeline.data.batches", "pipeline.ranks", *_BASE),
    ),
    "pipeline.trained": ("pipeline.data.augment", "pipeline.run", "pipeline.model", *_BASE),
    "pipeline.train": (
        *(_DOOR, "pipeline.trained", "pipeline.optim", "pipeline.ranks", "pipeline.metrics"),
        *("pipeline.run", "pipeline.model", *_BASE),
    ),
    "pipeline.predict": ("pipeline.trained", "pipeline.ranks", SHARD_SET),
    "pipeline.evaluate": (
        *("pipeline.train.evaluation", "pipeline.trained", _DOOR),
        *("pipeline.ranks", "pipeline.run", "pipeline.model", *_BASE),
    ),
    "pipeline.export": ("pipeline.trained", "pipeline.run", "pipeline.model", *_BASE),
    "pipeline.doctor": (
        *("pipeline.optim", "pipeline.ranks", "pipeline.metrics", "pipeline.run", *_BASE),
    ),
    "pipeline.benchmark": (*(_DOOR, "pipeline.optim", "pipeline.ranks", "pipeline.model", *_BASE),),
    "pipeline.report": ("pipeline.trained", "pipeline.metrics", "pipeline.run", SHARD_SET),
    "pipeline.watch": (
        *("pipeline.explain", "pipeline.report.marks", "pipeline.report.timeline"),
        *("pipeline.metrics", "pipeline.run", *_BASE),
    ),
    "pipeline.follow": ("pipeline.run", SHARD_SET),
    "pipeline.exporter": ("pipeline.metrics", SHARD_SET),
    "pipeline.start_ranks": ("pipeline.ranks", "pipeline.run", "pipeline.config"),
    "pipeline.data.benchmark": ("pipeline.benchmark", "pipeline.ranks", SHARD_SET),
    "launch.monitoring": ("pipeline.metrics", "pipeline.run", *_BASE),
    "launch": (
        *(
            "launch.monitoring",
            "data_prep.__main__",
            "pipeline.doctor.options",
            "pipeline.explain",
            "pipeline.follow",
            "pipeline.report.__main__",
            "pipeline.report.comparison",
            "pipeline.watch.server",
            "pipeline.train.command",
            "pipeline.data.order",
            "pipeline.metrics",
            "pipeline.run",
        ),
        *_BASE,
    ),
}
"""Each room, and the rooms below it that it may import; a room comes after those. Of `train`, the
tools and launchers may import what is named here. The modules at the end are doors: they keep the
name of a command whose code lives in a room."""

OF_PACKAGES = {"pipeline": ("pipeline.trained",)}
"""What the `__init__` of a package that only holds rooms may import."""

NO_TORCH = (
    *(SHARD_SET, "data_prep.sources", "data_prep.convert", "data_prep.verify", "data_prep.beton"),
    *(
        "data_prep.sharding",
        "data_prep.__main__",
        "pipeline.config",
        "pipeline.run",
        "pipeline.metrics",
        "pipeline.explain",
    ),
    *("pipeline.data.order", "pipeline.data.cache", "pipeline.exporter", "pipeline.start_ranks"),
    "pipeline.watch",
    "pipeline.follow",
    *("launch.monitoring", "launch"),
)
"""Rooms that work without torch: nothing that their import brings with it may import torch."""

MAY_HAVE_TORCH = {"pipeline.run.checkpoint", "pipeline.run.torch_file"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = [source for package in PACKAGES for source in sources(package)]
MODULES = {module_name(source): source for source in SOURCES}
each_source = pytest.mark.parametrize("source", SOURCES, ids=module_name)


@functools.cache
def parse(source: Path) -> ast.Module:
    return ast.parse(source.read_text(), str(source))


@functools.cache
def imported(source: Path) -> tuple[str, ...]:
    """Every module that is imported anywhere in the file, and `module.name` for its names."""
    return tuple(_imported(parse(source)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{room}.")


@functools.cache
def room_of(name: str) -> str | None:
    """The room of a module, or of a name in one."""
    return max((room for room in ROOMS if is_in(name, room)), key=len, default=None)


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


_OF_EXTRAS = (
    "ffcv",
    "jinja2",
    "llvmlite",
    "matplotlib",
    "mlflow",
    "numba",
    "tensorboard",
    "trackio",
    "triton",
    "wandb",
)


def importable(package: str) -> list[str]:
    """All modules of a package but those of the extras, which may be missing."""
    return [
        module_name(source)
        for source in sources(package)
        if not any(name.startswith(_OF_EXTRAS) for name in imported(source))
    ]


def test_every_module_is_in_a_room() -> None:
    """But the `__init__` of what only holds rooms, which says so."""
    outside = {name for name in MODULES if room_of(name) is None}
    assert outside == {"data_prep", "pipeline", "pipeline.data"}


def test_every_room_is_there_and_says_what_lives_in_it() -> None:
    for room in ROOMS:
        assert ast.get_docstring(parse(MODULES[room])), room


def test_a_long_module_says_why_it_is_one() -> None:
    benchmarks = (ROOT / "benchmarks").rglob("*.py")
    for source in (*SOURCES, *benchmarks):
        if len(source.read_text().splitlines()) > MOST_LINES:
            assert f"Longer than {MOST_LINES} lines: " in (ast.get_docstring(parse(source)) or "")


def test_a_room_is_above_those_it_imports() -> None:
    order = list(ROOMS)
    for room, below in ROOMS.items():
        for name in below:
            assert name in MODULES
            found = room_of(name)
            assert found is not None
            assert order.index(found) < order.index(room), (room, name)
        if room.startswith("pipeline"):
            assert {name for name in below if is_in(name, "data_prep")} <= {SHARD_SET}


def test_imports_go_to_rooms_below() -> None:
    """Those for types alone too, and those in a function."""
    upwards = []
    for module, source in MODULES.items():
        room = room_of(module)
        for name in imported(source):
            is_ours = name.split(".")[0] in OURS
            if is_ours and (room is None or room_of(name) != room):
                below = ROOMS[room] if room else OF_PACKAGES.get(module, ())
                if not any(is_in(name, allowed) for allowed in below):
                    upwards.append(f"{module} imports {name}")
    assert not upwards


def test_a_room_may_import_only_what_it_does() -> None:
    """Else the table would say less than it seems to."""
    idle = []
    for room, below in ROOMS.items():
        names = {
            name
            for module, source in MODULES.items()
            if room_of(module) == room
            for name in imported(source)
        }
        idle += [(room, entry) for entry in below if not any(is_in(n, entry) for n in names)]
    assert not idle


def test_rooms_without_torch_work_without_it() -> None:
    """Really imported, so that what their imports import counts too."""
    names = [
        name
        for package in PACKAGES
        for name in importable(package)
        if room_of(name) in NO_TORCH and name not in MAY_HAVE_TORCH
    ]
    loaded = run_python(
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "print('launch.__main__' in sys.modules)",
        *names,
    )
    assert loaded == "True\n"


def test_rooms_without_torch_do_not_name_it() -> None:
    """Not for types and not in a function either; `start_ranks` loads it to start torchrun."""
    for module, source in MODULES.items():
        if room_of(module) in NO_TORCH and module not in {*MAY_HAVE_TORCH, "pipeline.start_ranks"}:
            assert not any(is_in(name, "torch") for name in imported(source)), module


@pytest.mark.slow
@each_source
def test_only_one_module_reads_the_launchers_variables(source: Path) -> None:
    if module_name(source) == "pipeline.ranks.launcher":
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


CHOICES = {"encoding": get_args(Encoding)} | {
    name: field.choices for name, field in FIELDS.items() if field.choices
}
"""The fields that hold one of some names, and which."""


@pytest.mark.slow
@each_source
def test_code_chooses_by_a_name_in_a_match_that_knows_all_names(source: Path) -> None:
    """A comparison with one name takes all others, those to come too, for one and the same.

    `device` is left out, as torch's devices have an attribute of that name, and so is the room
    that refuses what cannot be.
    """
    words: dict[str, set[str]] = {}
    for field, names in CHOICES.items():
        words.setdefault(field.rpartition(".")[2], set()).update(names)
    del words["device"]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Match) and name_of(node.subject) in words:
            (last,) = node.cases[-1].body
            assert ast.unparse(last).startswith("assert_never("), ast.unparse(node)
        if isinstance(node, ast.Compare) and not is_in(module_name(source), "pipeline.config"):
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


def test_every_folder_of_modules_is_a_package() -> None:
    """What has no `__init__` would not be installed."""
    for source in SOURCES:
        assert (source.parent / "__init__.py").exists()
