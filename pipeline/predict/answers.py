"""What is printed of predictions: a table, lines of JSON, or CSV; and how many are right."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TextIO, assert_never

from data_prep.shard_set.files import as_text, printable
from pipeline.predict.inputs import Input
from pipeline.trained.classify import Prediction
from pipeline.trained.scores import TOP_K

Style = Literal["table", "json", "csv"]

_MOST_COLUMNS = 60
"""Of the table, for an image's name; a longer one pushes its row to the right."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of one image."""

    name: str
    prediction: Prediction
    label: int | None
    """The right one, if a tar has it."""

    @property
    def true_class(self) -> str | None:
        return None if self.label is None else self.prediction.class_names[self.label]

    def labels(self, top: int) -> list[int]:
        """The most probable ones."""
        return [int(label) for label in self.prediction.ranking[:top]]


def label_of(label: int | str | None, class_names: Sequence[str]) -> int | None:
    """The number of a class that is given by number or name; None if it is none of them."""
    if isinstance(label, str):
        return class_names.index(label) if label in class_names else None
    return label if label is not None and 0 <= label < len(class_names) else None


class Printer:
    """Prints each answer as soon as it is there."""

    def __init__(self, style: Style, stream: TextIO, inputs: Sequence[Input], top: int) -> None:
        self._style: Style = style
        self._stream = stream
        self._top = top
        names = (len(printable(one.name)) for one in inputs)
        self._width = min(max(names, default=0), _MOST_COLUMNS)
        self._csv = csv.writer(stream, lineterminator="\n")
        self._has_begun = False

    def show(self, answer: Answer) -> None:
        top = min(self._top, len(answer.prediction.class_names))
        match self._style:
            case "table":
                self._show_rows(answer, top)
            case "json":
                self._stream.write(json.dumps(_fields(answer, top), ensure_ascii=False) + "\n")
            case "csv":
                if not self._has_begun:
                    ranks = range(1, top + 1)
                    heads = [
                        f"{what}_{rank}" for rank in ranks for what in ("class", "probability")
                    ]
                    self._csv.writerow(["image", "true_class", *heads])
                pairs = answer.prediction.top(top)
                cells = [cell for name, share in pairs for cell in (name, f"{share:.6g}")]
                self._csv.writerow([as_text(answer.name), answer.true_class, *cells])
            case unknown:
                assert_never(unknown)
        self._has_begun = True

    def _show_rows(self, answer: Answer, top: int) -> None:
        if not self._has_begun:
            self._stream.write(f"{'image':{self._width}}  probability  class\n")
        labels = answer.labels(top)
        if answer.label is not None and answer.label not in labels:
            labels.append(answer.label)
        for number, label in enumerate(labels):
            name = printable(answer.name) if number == 0 else ""
            share, mark = answer.prediction.probabilities[label], " ✓" * (label == answer.label)
            class_name = printable(answer.prediction.class_names[label])
            self._stream.write(f"{name:{self._width}}  {share:>11.2%}  {class_name}{mark}\n")


def _fields(answer: Answer, top: int) -> dict[str, object]:
    prediction = answer.prediction
    return {
        "image": as_text(answer.name),
        "true_class": answer.true_class,
        "predictions": [
            {
                "class": prediction.class_names[label],
                "label": label,
                "probability": float(f"{prediction.probabilities[label]:.6g}"),
            }
            for label in answer.labels(top)
        ],
    }


@dataclass(slots=True)
class Tally:
    """Counts of images."""

    num_classes: int
    num_classified: int = 0
    num_failed: int = 0
    num_labelled: int = 0
    num_unknown: int = 0
    """With a label that is none of the network's classes."""
    correct1: int = 0
    correct5: int = 0

    def note(self, answer: Answer, *, has_label: bool) -> None:
        self.num_classified += 1
        if answer.label is None:
            self.num_unknown += has_label
            return
        self.num_labelled += 1
        self.correct1 += answer.label in answer.labels(1)
        self.correct5 += answer.label in answer.labels(TOP_K)

    def lines(self) -> list[str]:
        """Of a summary; top-5 is left out where it says nothing, as in evaluations."""
        found = [f"{_plural(self.num_classified, 'image')} classified"]
        if self.num_failed:
            found[0] += f", {self.num_failed:,} not"
        hits = {"top-1": self.correct1}
        if self.num_classes > TOP_K:
            hits["top-5"] = self.correct5
        if self.num_labelled:
            found += [
                f"{name} {correct / self.num_labelled:.2%} ({correct:,} of {self.num_labelled:,})"
                for name, correct in hits.items()
            ]
        if self.num_unknown:
            found.append(f"{_plural(self.num_unknown, 'label')} of none of the network's classes")
        return found


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
