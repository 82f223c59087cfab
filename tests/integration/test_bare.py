"""Where only torch and numpy are installed, generated images are converted and trained on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import EvalEvent
from tests.bare import bare_environment

_CONVERT = """
import sys
from pathlib import Path
from data_prep.sharding import SOURCES

def main():
    make = SOURCES["synthetic"]
    make(shards=Path(sys.argv[1]), encoding="yuv420", num_train=64, num_val=10, workers=1).run()

if __name__ == "__main__":
    main()
"""


def test_pixels_are_converted_and_trained_on_without_any_package(tmp_path: Path) -> None:
    environment, shards, run = bare_environment(tmp_path), tmp_path / "shards", tmp_path / "run"
    program = tmp_path / "convert.py"
    program.write_text(_CONVERT)
    recipe = ("cifar10", "--data.shards", shards, "--run-dir", run, "--epochs", 1)
    options = ("--data.reader", "resident", "--global_batch_size", 32, "--metrics.enabled", False)
    for words in ((program, shards), ("-m", "pipeline.train", *recipe, *options)):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (evaluation,) = of_type(read_events(RunDirectory(run).events), EvalEvent)
    assert evaluation.seen == 10


def test_there_are_no_packages(tmp_path: Path) -> None:
    """Else the test above would say nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import PIL"],
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PIL" in done.stderr
