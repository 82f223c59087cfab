"""Command line: `python -m pipeline.report RUN` writes `RUN/report.html` and says where it is.

Of several runs it writes one page that compares them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import within
from data_prep.shard_set.files import as_text, describe, path_option, write_atomically
from data_prep.shard_set.options import Named, read_options
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from pipeline.run.directory import RunDirectory

_EXTRA = ("jinja2", "matplotlib")


def require_extra() -> None:
    """Raise `ModuleNotFoundError` if the extra `report` is not installed."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the report needs {' and '.join(missing)}: pip install 'alexnet-2012[report]'"
        )


def write_report(runs: Sequence[RunDirectory], output: Path, num_neighbours: int = 0) -> None:
    """Write the report of a run, or the comparison of several, to `output`, whole or not at all.

    That of a run searches for the nearest of `num_neighbours` training images.

    Raises `ValueError` if what is given is no run directory or its files are damaged, `OSError` if
    the page cannot be written, `ModuleNotFoundError` if the extra `report` is not installed.
    """
    require_extra()
    if len(runs) == 1:  # imported here, because they need the extra
        from pipeline.report.page import render

        text = render(runs[0], num_neighbours)
    else:
        from pipeline.report.comparison_page import render_comparison

        text = render_comparison(runs)
    if not output.parent.is_dir():
        raise NotADirectoryError(f"{output.parent} is not a directory: give another --output")
    if output.exists() and not output.is_file():  # a rename would replace even a device
        raise FileExistsError(f"{output} is not a regular file: give another --output")
    write_atomically(output, as_text(text).encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write a run's report as one HTML page, or a page that compares several runs."""

    runs: Annotated[tuple[str, ...], Named("RUN")]
    """Run directories; of several, at most 8, one page compares them."""
    output: Annotated[Path | None, Named("--output", "FILE")] = None
    """The page to write; if not given, RUN/report.html, or comparison.html beside the first of
    several runs."""
    neighbours: Annotated[int, within(0, 50_000)] = 0
    """Training images among which the report of one run looks for those that are nearest to some
    validation images in the last hidden layer's space, at most 50,000; it takes minutes, and RUN
    keeps what is found. 0: show what it has kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.report", Options, arguments)
    output = options.output
    try:
        runs = [RunDirectory(path_option(run)) for run in options.runs]
        if output is None:
            beside = runs[0].path.absolute().parent / "comparison.html"
            output = runs[0].report if len(runs) == 1 else beside
        write_report(runs, output, options.neighbours)
    except (ImportError, OSError, ValueError) as error:
        other = ""
        if isinstance(error, OSError) and error.filename == str(output):
            other = "; give --output FILE, where it can be written"
        say(f"error: {describe(error)}{other}", stream=sys.stderr)
        return 1
    say(str(output))
    return 0


if __name__ == "__main__":
    open_streams()
    sys.exit(exit_code_after_flush(main()))
