"""The steps of decoding JPEGs, which Python does not call by themselves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.shard_set import compiled
from tests import machine
from tests.data_prep.raw_data import REPOSITORY

SOURCES = REPOSITORY / "data_prep/shard_set/c"


@pytest.fixture(scope="session", params=["here", pytest.param("elsewhere", marks=pytest.mark.slow)])
def steps(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """idct.c and color.c as they are compiled here, and as on processors that lanes.h knows not."""
    if not compiled.is_compiled():
        machine.skip("data_prep.shard_set._pixels was not built")
    if request.param == "here":
        return compiled.library()
    if shutil.which("gcc") is None:
        machine.skip("needs gcc")
    built: Path = tmp_path_factory.mktemp("steps") / "steps.so"
    options = (
        "-O2",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-DPLAIN_LANES",
        "-shared",
        "-fPIC",
    )
    sources = (SOURCES / "idct.c", SOURCES / "color.c")
    subprocess.run(["gcc", *options, *sources, "-o", built], check=True)
    return ctypes.CDLL(str(built))
