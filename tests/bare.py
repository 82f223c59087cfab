"""A machine with torch and numpy alone: processes in which no other package can be imported."""

from __future__ import annotations

import os
from pathlib import Path

_MISSING = (
    *("PIL", "simplejpeg", "isal", "webdataset", "braceexpand", "prometheus_client", "numba"),
    *("scipy", "pyarrow", "matplotlib", "safetensors", "onnx", "pytest", "hypothesis"),
)


def bare_environment(folder: Path) -> dict[str, str]:
    """The environment of a process, and of those that it starts, without packages.

    `folder` gets a `sitecustomize.py`, which Python imports when it starts.
    """
    lines = f"import sys\n\nsys.modules.update(dict.fromkeys({_MISSING}))\n"
    (folder / "sitecustomize.py").write_text(lines)
    root = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(root)))}
