"""`make demo`, the first thing that a newcomer runs, on a part of its epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.training import rows
from tests.pipeline.monitoring import REPOSITORY

NOISE = ("***", "warning", "error", "omp_num_threads", "traceback", "[rank")


def test_the_demo_says_nothing_that_a_newcomer_must_ignore(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables = (f"RUNS={tmp_path}", f"BIN={Path(sys.executable).parent}", "EPOCHS=0.1")
    done = subprocess.run(
        ["make", "--no-print-directory", "--assume-old=.venv/.installed", "demo", *variables],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()  # how far the conversion is, if it takes long enough
    assert [line for line in lines if not line.startswith("sharding: ")] == []
    assert [word for word in NOISE if word in done.stdout.lower()] == []
    assert rows(tmp_path / "demo", "end")[-1]["outcome"] == "completed"
    assert done.stdout.splitlines()[-1] == str(tmp_path / "demo" / "report.html")
