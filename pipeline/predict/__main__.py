"""Classifies images with a trained network.

    python -m pipeline.predict RUN|EXPORT IMAGE|FOLDER|TAR|- … [--top 5] [--json|--csv]

An image that cannot be used is one line on standard error; the others are classified all the same,
and the exit code is then 1.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.decoding import quiet
from data_prep.shard_set.fields import at_least, choice_of
from data_prep.shard_set.files import printable, write_atomically
from data_prep.shard_set.options import Named, read_options
from data_prep.shard_set.progress import Progress
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from pipeline.predict import figure
from pipeline.predict.answers import Answer, Printer, Style, Tally, label_of
from pipeline.predict.inputs import Input, find_inputs
from pipeline.ranks.failure import exit_code_of
from pipeline.trained.classify import Classifier, Prediction, decoded, load_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Classify images with a trained network."""

    source: Annotated[str, Named("RUN|EXPORT")]
    """A run (its newest checkpoint), RUN@best, RUN@STEP, a checkpoint's folder or an export."""
    images: Annotated[tuple[str, ...], Named("IMAGE|FOLDER|TAR|-")]
    """Images, folders of them at any depth, tars of them, or - for one on standard input."""
    top: Annotated[int, at_least(1)] = 5
    """How many of the most probable classes to show."""
    json: bool = False
    """Print a line of JSON for each image."""
    csv: bool = False
    """Print CSV, a row for each image."""
    views: Annotated[int | None, choice_of(1, 10)] = None
    """1: the middle of each image, 10: the ten views of 2012; if not given, as in training."""
    figure: Annotated[Path | None, Named("--figure", "OUT.png|OUT.html")] = None
    """Draw the first images beside bars of their most probable classes into this file."""

    def style(self) -> Style:
        """Raises `ValueError` if there are two."""
        if self.json and self.csv:
            raise ValueError("--json and --csv are given: leave one out")
        return "json" if self.json else "csv" if self.csv else "table"


class _Complaints:
    """Counts what cannot be used, and says each in one line."""

    def __init__(self) -> None:
        self.count = 0
        self.is_bar_shown = False

    def say(self, sentence: str) -> None:
        self.count += 1
        width = shutil.get_terminal_size().columns - 1
        clear = f"\r{' ' * width}\r" if self.is_bar_shown else ""
        sys.stderr.write(f"{clear}error: {printable(sentence)}\n")


def predict(options: Options) -> int:
    """Returns the exit code."""
    style = options.style()
    if options.figure is not None:
        figure.check_target(options.figure)
    model = load_model(options.source, views=options.views)
    complaints = _Complaints()
    inputs = find_inputs(options.images, complaints.say)
    printer = Printer(style, sys.stdout, inputs, options.top)
    tally = Tally(num_classes=len(model.class_names))
    shown: list[tuple[Answer, Input]] = []
    for one, answer in _answers(model, inputs, complaints):
        printer.show(answer)
        tally.note(answer, has_label=one.label is not None)
        if options.figure is not None and len(shown) < figure.MOST_IMAGES:
            shown.append((answer, one))
    tally.num_failed = complaints.count
    summary = sys.stdout if style == "table" else sys.stderr
    summary.writelines(f"{line}\n" for line in tally.lines())
    if options.figure is not None:
        _draw(options.figure, model, shown, options.top, tally.num_classified)
    return 1 if complaints.count else 0


def _answers(
    model: Classifier, inputs: Sequence[Input], complaints: _Complaints
) -> Iterator[tuple[Input, Answer]]:
    """Those that can be used; a bar on a terminal shows how many are done."""
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
    progress = Progress("predict", "images", sys.stderr) if is_shown else None
    complaints.is_bar_shown = is_shown
    with contextlib.closing(model.each([one.read for one in inputs])) as found:
        for number, (one, prediction) in enumerate(zip(inputs, found, strict=True), 1):
            if progress is not None:
                progress.show(number, len(inputs))
            if isinstance(prediction, Prediction):
                label = label_of(one.label, model.class_names)
                yield one, Answer(one.name, prediction, label)
            else:
                reason = getattr(prediction, "strerror", None) or prediction
                complaints.say(f"{one.name}: {reason}")
    if progress is not None:
        progress.close()


def _draw(
    path: Path,
    model: Classifier,
    shown: Sequence[tuple[Answer, Input]],
    top: int,
    num_classified: int,
) -> None:
    """Write the figure; raises `ValueError` if there is nothing to draw, and `OSError`."""
    if not shown:
        raise ValueError(f"{path} is not drawn: there is no image to show")
    with quiet():
        pictures = [(answer, decoded(one.read())) for answer, one in shown]
    origin = model.network.origin
    title = f"Predictions of {printable(origin.run)}, step {origin.step:,}"
    write_atomically(path, figure.draw(path, pictures, top, title))
    if len(shown) < num_classified:
        note = f"note: {path} shows the first {len(shown)} of {num_classified:,} images"
        say(note, stream=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.predict", Options, arguments)
    return exit_code_of(lambda: predict(options))


if __name__ == "__main__":
    open_streams()
    sys.exit(exit_code_after_flush(main()))
