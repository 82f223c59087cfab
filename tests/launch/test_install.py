"""What others get: a source archive, wheels with and without the compiled code, and their use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.shard_set.compiled import is_compiled
from launch.alexnet import help_text

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta as b; print(b.build_{}(sys.argv[1]))"

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str | Path, **variables: str) -> str:
    """What a command prints, run in a folder outside the project."""
    environment = {**os.environ, "PYTHONPATH": "", **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(tree: Path, kind: str, target: Path, **variables: str) -> Path:
    """An archive of `kind` made of the project in `tree`, as pip, uv and build make it."""
    lines = run(tree, sys.executable, "-c", BUILD.format(kind), target, **variables).splitlines()
    return target / lines[-1]


def product_files() -> list[str]:
    """All that git knows of the packages, or would."""
    names = run(
        ROOT,
        *("git", "ls-files", "-co", "--exclude-standard"),
        *("data_prep", "launch", "pipeline"),
    ).split()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the source archive holds."""
    folder = tmp_path_factory.mktemp("source")
    others = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
    for name in (*others, "CITATION.cff", "constraints.txt", *product_files()):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    archive = build(folder / "tree", "sdist", folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def install(wheel: Path, site: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(wheel.parent, *pip, "--target", site, wheel)


def test_the_source_archive_holds_the_product_and_how_to_install_it(unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    # Pages of rooms are for those who have the whole project.
    needed = {name for name in product_files() if not name.endswith("README.md")}
    assert needed <= names
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= names
    assert not any(name.startswith("tests/") for name in names)


def test_a_wheel_is_the_whole_product(unpacked: Path, tmp_path: Path) -> None:
    """Installed without make, in a folder of its own: what it trains and draws is all in it."""
    wheel = build(unpacked, "wheel", tmp_path)
    needed = {name for name in product_files() if not name.endswith("README.md")}
    assert needed <= set(zipfile.ZipFile(wheel).namelist())
    site = tmp_path / "site"
    install(wheel, site)

    def alexnet(*words: str) -> str:
        program = site / "bin" / "alexnet"
        return run(tmp_path, sys.executable, program, *words, PYTHONPATH=str(site))

    module = "data_prep.shard_set.compiled"
    code = f"import launch, {module} as it; print(it.is_compiled(), launch.__file__)"
    compiled, where = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(site)).split()
    assert Path(where).is_relative_to(site)
    assert compiled == str(is_compiled())
    sizes = ("--num-train", "64", "--num-val", "32")
    alexnet("shard", "synthetic", *sizes, "--output", "shards")
    recipe = ("cifar10", "--data.shards", "shards", "--run-dir", "run", "--epochs", "1")
    alone = ("--global_batch_size", "32", "--metrics.exporter", "false")
    alexnet("launch", "local", "--nproc", "1", *recipe, *alone)
    assert "completed" in alexnet("status", "run")
    assert alexnet("report", "run") == "run/report.html\n"
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    alexnet("launch", "prometheus", "--run-root", ".")
    assert (tmp_path / "prometheus.yml").is_file()
    assert alexnet("--help") == help_text()


CUT = """
import io, sys, zlib
import numpy as np
from PIL import Image
from data_prep.shard_set import compiled, pixels
noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
jpeg = io.BytesIO()
Image.fromarray(noise).save(jpeg, "jpeg")
out = np.empty((1, 32, 32, 3), np.uint8)
pixels.cut_jpegs([jpeg.getvalue()], np.array([[5, 7, 60, 50]]), out)
print(compiled.is_compiled(), zlib.crc32(out))
"""


def test_a_wheel_without_the_compiled_code_gives_the_same_bytes(
    unpacked: Path, tmp_path: Path
) -> None:
    """Built where there is no compiler."""
    tree = tmp_path / "tree"
    shutil.copytree(unpacked, tree, ignore=shutil.ignore_patterns("build"))
    wheel = build(tree, "wheel", tmp_path, CC="no-such-compiler")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    site = tmp_path / "site"
    install(wheel, site)
    plain, fast = (
        run(tmp_path, sys.executable, "-c", CUT, PYTHONPATH=str(place)).split()
        for place in (site, ROOT)
    )
    assert plain == ["False", fast[1]]
