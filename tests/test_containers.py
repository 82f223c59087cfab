"""The recipes of images: linted, pinned, and in agreement with each other and with the project.

No image is built here: that needs a registry of images, and rights that tests lack.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.config.schema import MetricsConfig
from tests.pipeline.monitoring import REPOSITORY, require_tool

CONTAINERFILE = (REPOSITORY / "Containerfile").read_text()
DEFINITION = (REPOSITORY / "alexnet.def").read_text()
BOTH = pytest.mark.parametrize("recipe", [CONTAINERFILE, DEFINITION], ids=["oci", "apptainer"])
BASE = re.compile(r"^From:? (docker\.io/\S+)", re.IGNORECASE | re.MULTILINE)
PACKAGES = re.compile(r"apt-get install -y --no-install-recommends (.*)")

_PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LEFT_OUT = {"dev", "fuzz", "docs", "ffcv", "trackio", "wandb"}
"""Extras that no image has: for work on the project, hard to install, or for desks."""

PROJECT, TOOLS = _PYPROJECT["project"], _PYPROJECT["tool"]


def copied() -> set[str]:
    """What the image is built of."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    return {word for line in lines for word in line.split()}


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        require_tool("hadolint")
    done = subprocess.run(
        [linter, REPOSITORY / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@BOTH
def test_the_base_has_a_version_and_a_python_that_is_tested(recipe: str) -> None:
    bases = set(BASE.findall(recipe))
    assert len(bases) == 1
    assert bases == set(BASE.findall(CONTAINERFILE)), "both build on the same"
    match = re.fullmatch(r"docker\.io/library/python:(\d+\.\d+)\.\d+-slim-\w+", bases.pop())
    assert match is not None
    assert f"Programming Language :: Python :: {match[1]}" in PROJECT["classifiers"]


@BOTH
def test_packages_are_those_of_the_constraints_and_extras_are_there(recipe: str) -> None:
    (extras,) = re.findall(r"'\.\[(.*)\]'", recipe)
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"]) - LEFT_OUT
    assert "--constraint constraints.txt" in recipe
    assert f"org.opencontainers.image.version {PROJECT['version']}" in re.sub('[="]+', " ", recipe)


def test_the_last_stage_is_slim_and_both_have_the_same_in_it() -> None:
    of_image = PACKAGES.findall(CONTAINERFILE)[0].split(" \\")[0].split()
    of_apptainer = PACKAGES.findall(DEFINITION)[-1].split()
    assert set(of_image) - set(of_apptainer) == {"tini"}, "apptainer's process 1 is its own"
    assert not any("jpeg" in name and name.endswith("-dev") for name in of_image + of_apptainer)
    assert CONTAINERFILE.count("FROM") == 3
    assert CONTAINERFILE.rindex("USER 1000:1000") > CONTAINERFILE.rindex("RUN ")
    port = MetricsConfig().exporter_port
    assert f"http://127.0.0.1:{port}/healthz" in CONTAINERFILE


def test_both_copy_the_same_and_no_more_is_sent_to_the_builder() -> None:
    assert set(re.findall(r"^ +(\S+) /src/\1$", DEFINITION, re.MULTILINE)) == copied()
    sent = re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert set(sent) == copied()


def test_all_is_copied_that_the_project_is_built_of() -> None:
    patterns = (REPOSITORY / "MANIFEST.in").read_text()
    (included,) = re.findall(r"^include (.*)$", patterns, re.MULTILINE)
    packages = [place.rstrip("*") for place in TOOLS["setuptools"]["packages"]["find"]["include"]]
    named = {PROJECT["readme"], *PROJECT["license-files"], *included.split(), *packages}
    assert copied() == named | {"pyproject.toml", "MANIFEST.in"}
