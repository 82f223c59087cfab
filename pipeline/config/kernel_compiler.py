"""Whether kernels can be compiled for a GPU here: what Triton needs is more than Triton."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path


@functools.cache
def compiler_fault() -> str | None:
    """What is missing, and what to install, without a full stop; None: nothing.

    Where a kernel is first called Triton compiles a module that talks to the driver, by $CC or else
    gcc or clang, against Python's headers (`triton/runtime/build.py`).
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"Triton needs a C compiler, and CC is {named!r}, no program (set CC, or unset it)"
    if named is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton needs a C compiler, and finds no gcc and no clang (install gcc, or set CC)"
    folders = [_python_headers(), *map(Path, _searched_by_compilers())]
    if not any((folder / "Python.h").is_file() for folder in folders):
        return (
            f"Triton needs Python's headers, and there is no {folders[0] / 'Python.h'} (install "
            "python3-dev or python3-devel of this Python's version)"
        )
    return None


def _python_headers() -> Path:
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's, for what is installed by hand
        scheme = "posix_prefix"
    return Path(sysconfig.get_path("include", scheme))


def _searched_by_compilers() -> list[str]:
    """Folders that gcc and clang look into as the environment says."""
    paths = (os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH"))
    return [folder for path in paths for folder in path.split(os.pathsep) if folder]
