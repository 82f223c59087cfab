"""Command line: `python -m pipeline.report RUN` writes `RUN/report.html` and says where it is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.shard_set.files import as_text, describe, path_option, write_atomically
from data_prep.shard_set.parser import Parser
from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from pipeline.run.directory import RunDirectory

_EXTRA = ("jinja2", "matplotlib")


def write_report(run: RunDirectory, output: Path) -> None:
    """Write the report of `run` to the file `output`, whole or not at all.

    Raises `ValueError` if `run` is not a run directory or its files are damaged, `OSError` if the
    page cannot be written, `ModuleNotFoundError` if the extra `report` is not installed.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the report needs {' and '.join(missing)}: pip install 'alexnet-2012[report]'"
        )
    from pipeline.report import page  # here, because it needs the extra

    text = page.render(run)
    if not output.parent.is_dir():
        raise NotADirectoryError(f"{output.parent} is not a directory: give another --output")
    if output.exists() and not output.is_file():  # a rename would replace even a device
        raise FileExistsError(f"{output} is not a regular file: give another --output")
    write_atomically(output, as_text(text).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m pipeline.report", description="Write a run's report as one HTML page."
    )
    parser.add_argument("run", metavar="RUN", type=path_option, help="the run directory")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path_option,
        help="the page to write; default: RUN/report.html",
    )
    options = parser.parse_args(arguments)
    run = RunDirectory(options.run)
    output: Path = options.output or run.report
    try:
        write_report(run, output)
    except (ImportError, OSError, ValueError) as error:
        other = ""
        if isinstance(error, OSError) and error.filename == str(output):
            other = "; give --output FILE, where it can be written"
        sys.stderr.write(f"error: {describe(error)}{other}\n")
        return 1
    sys.stdout.write(f"{output}\n")
    return 0


if __name__ == "__main__":
    open_streams()
    sys.exit(exit_code_after_flush(main()))
