"""From the predictions of an evaluation to what the page draws of them: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.report.inputs import Predictions

Counts = npt.NDArray[np.int64]

MAX_BARS = 10
"""Bars and rows in the figure of what each class was taken for."""

_NUM_EXAMPLES = 8
_EXAMPLE_KINDS = {"right": 3, "top k": 3, "wrong": 2}
"""How many examples of each kind to show, if there are enough: right; wrong, but the right class is
among the k most probable; wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One horizontal bar: how much of something went to a class."""

    class_name: str
    share: float
    """In [0, 1]."""
    count: int | None = None
    is_right: bool
    """Whether this is the right class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An image with bars: what its class was taken for, or what the network thinks it is."""

    sample: int
    """Number of the image in the split."""
    class_name: str
    note: str
    bars: tuple[Bar, ...]


def confusion_matrix(predictions: Predictions, num_classes: int) -> Counts:
    """How often images of class `row` were taken for class `column`, [num_classes, num_classes]."""
    pairs = predictions.labels * num_classes + predictions.topk_classes[:, 0]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def row_shares(matrix: Counts) -> npt.NDArray[np.float64]:
    """The matrix as shares of each row's sum; a row without images stays 0."""
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(totals, 1))


def class_rows(predictions: Predictions, matrix: Counts, class_names: Sequence[str]) -> list[Card]:
    """The classes that have images; of more than `MAX_BARS` those with the lowest recall."""
    totals = matrix.sum(axis=1)
    classes = [int(label) for label in np.flatnonzero(totals)]
    if len(classes) > MAX_BARS:
        recall = np.diag(matrix) / np.maximum(totals, 1)
        classes = sorted(classes, key=lambda label: (recall[label], label))[:MAX_BARS]
    return [
        Card(
            sample=int(np.argmax(predictions.labels == label)),  # the first of the class
            class_name=class_names[label],
            note=f"{matrix[label, label]:,} / {totals[label]:,} right",
            bars=_class_bars(matrix[label], label, class_names),
        )
        for label in classes
    ]


def _class_bars(counts: Counts, label: int, class_names: Sequence[str]) -> tuple[Bar, ...]:
    """A bar for every class in label order; of more than `MAX_BARS` the right and most frequent."""
    classes: Sequence[int] = range(len(counts))
    if len(counts) > MAX_BARS:
        by_count = np.argsort(-counts, kind="stable").tolist()
        others = [other for other in by_count if other != label and counts[other] > 0]
        classes = sorted([label, *others[: MAX_BARS - 1]], key=lambda shown: -counts[shown])
    return tuple(
        Bar(
            class_name=class_names[taken_for],
            share=int(counts[taken_for]) / int(counts.sum()),
            count=int(counts[taken_for]),
            is_right=taken_for == label,
        )
        for taken_for in classes
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """A frequent mistake."""

    right: str
    taken_for: str
    count: int
    """Images of the class `right` that were taken for `taken_for`."""
    num_images: int
    """Of the class `right`."""
    mistaken: int
    """The image that was most surely taken for the other class: its number in the split."""
    typical: int | None
    """That of the other class that was most surely right; None: there is none."""


def confused_pairs(
    predictions: Predictions, matrix: Counts, class_names: Sequence[str], limit: int
) -> list[ConfusedPair]:
    """The most frequent mistakes, most frequent first."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = (divmod(int(position), len(matrix)) for position in order)
    return [
        ConfusedPair(
            right=class_names[right],
            taken_for=class_names[taken_for],
            count=int(mistakes[right, taken_for]),
            num_images=int(matrix[right].sum()),
            mistaken=_surest(predictions, right, taken_for),
            typical=_surest(predictions, taken_for, taken_for)
            if matrix[taken_for, taken_for]
            else None,
        )
        for right, taken_for in pairs
        if mistakes[right, taken_for] > 0
    ]


def _surest(predictions: Predictions, label: int, taken_for: int) -> int:
    """Of the images of a class that were taken for another one, that with most probability."""
    is_one = (predictions.labels == label) & (predictions.topk_classes[:, 0] == taken_for)
    return int(np.argmax(np.where(is_one, predictions.topk_probabilities[:, 0], -1.0)))


def choose_examples(predictions: Predictions, class_names: Sequence[str]) -> list[Card]:
    """The most confident of each kind, of different classes as far as possible.

    Where a kind has too few, the others take its places.
    """
    is_hit = predictions.topk_classes == predictions.labels[:, None]
    is_in_topk = is_hit.any(axis=1) & (len(class_names) > is_hit.shape[1])  # else all are
    right, in_topk, wrong = _EXAMPLE_KINDS
    kinds = np.where(is_hit[:, 0], right, np.where(is_in_topk, in_topk, wrong))
    confidence = predictions.topk_probabilities[:, 0]
    candidates = []
    for order, (kind, number) in enumerate(_EXAMPLE_KINDS.items()):
        of_kind = _vary_classes(np.flatnonzero(kinds == kind), confidence, predictions.labels)
        for place, sample in enumerate(of_kind):
            candidates.append((place >= number, order, place, kind, sample))
    chosen = sorted(sorted(candidates)[:_NUM_EXAMPLES], key=lambda candidate: candidate[1:])
    return [_example(predictions, sample, kind, class_names) for *_, kind, sample in chosen]


def _vary_classes(
    samples: npt.NDArray[np.int64], confidence: npt.NDArray[np.float32], labels: Counts
) -> list[int]:
    """By falling confidence, but the first of every class before the second of any."""
    seen: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    for sample in samples[np.argsort(-confidence[samples], kind="stable")].tolist():
        label = int(labels[sample])
        turns.append((seen[label], len(turns), sample))
        seen[label] += 1
    return [sample for *_, sample in sorted(turns)[:_NUM_EXAMPLES]]


def _example(predictions: Predictions, sample: int, kind: str, class_names: Sequence[str]) -> Card:
    label = int(predictions.labels[sample])
    classes = predictions.topk_classes[sample].tolist()
    probabilities = predictions.topk_probabilities[sample].tolist()
    bars = tuple(
        Bar(class_name=class_names[taken_for], share=share, is_right=taken_for == label)
        for taken_for, share in zip(classes, probabilities, strict=True)
    )
    note = kind if kind != "top k" else f"right only in the top {len(bars)}"
    return Card(sample=sample, class_name=class_names[label], note=note, bars=bars)
