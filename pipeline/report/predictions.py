"""From the predictions of an evaluation to what the page draws of them: pure functions."""

from __future__ import annotations

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
"""How many examples of each kind to show, if there are as many: right; right not at first but among
the k most probable; wrong."""


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
class ClassRow:
    """What the images of one class were taken for."""

    class_name: str
    num_images: int
    num_correct: int
    example: int
    """Sample number of the first image of the class."""
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One image with the classes that the network thought most probable."""

    sample: int
    class_name: str
    kind: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """Images of one class taken for another."""

    right_name: str
    taken_for: str
    count: int
    num_images: int
    """Images of the right class."""


def confusion_matrix(predictions: Predictions, num_classes: int) -> Counts:
    """How often images of class `row` were taken for class `column`, [num_classes, num_classes]."""
    pairs = predictions.labels * num_classes + predictions.topk_classes[:, 0]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def row_shares(matrix: Counts) -> npt.NDArray[np.float64]:
    """The matrix as shares of each row's sum; a row without images stays 0."""
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(totals, 1))


def class_rows(
    predictions: Predictions, matrix: Counts, class_names: Sequence[str]
) -> list[ClassRow]:
    """The classes that have images; of more than `MAX_BARS` those with the lowest recall."""
    totals = matrix.sum(axis=1)
    classes = [int(label) for label in np.flatnonzero(totals)]
    if len(classes) > MAX_BARS:
        recall = np.diag(matrix) / np.maximum(totals, 1)
        classes = sorted(classes, key=lambda label: (recall[label], label))[:MAX_BARS]
    return [
        ClassRow(
            class_name=class_names[label],
            num_images=int(totals[label]),
            num_correct=int(matrix[label, label]),
            example=int(np.argmax(predictions.labels == label)),
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


def confused_pairs(matrix: Counts, class_names: Sequence[str], limit: int) -> list[ConfusedPair]:
    """The most frequent mistakes, most frequent first."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(position), len(matrix)) for position in order]
    return [
        ConfusedPair(
            right_name=class_names[right],
            taken_for=class_names[taken_for],
            count=int(matrix[right, taken_for]),
            num_images=int(matrix[right].sum()),
        )
        for right, taken_for in pairs
        if mistakes[right, taken_for] > 0
    ]


def choose_examples(predictions: Predictions, class_names: Sequence[str]) -> list[Example]:
    """The most confident of each kind, each of another class as long as there are others.

    Where a kind has too few, the others fill its places.
    """
    kinds = _kinds(predictions, len(class_names))
    confidence = predictions.topk_probabilities[:, 0]
    ranking = {
        kind: _vary_classes(np.flatnonzero(kinds == kind), confidence, predictions.labels)
        for kind in _EXAMPLE_KINDS
    }
    chosen = {kind: ranking[kind][:number] for kind, number in _EXAMPLE_KINDS.items()}
    for kind, number in _EXAMPLE_KINDS.items():
        missing = _NUM_EXAMPLES - sum(len(samples) for samples in chosen.values())
        chosen[kind] += ranking[kind][number : number + missing]
    return [
        _example(predictions, sample, kind, class_names)
        for kind, samples in chosen.items()
        for sample in samples
    ]


def _kinds(predictions: Predictions, num_classes: int) -> npt.NDArray[np.str_]:
    """The kind of every sample, [n]."""
    is_hit = predictions.topk_classes == predictions.labels[:, None]
    right, in_topk, wrong = _EXAMPLE_KINDS
    if num_classes <= is_hit.shape[1]:  # all classes are among the k
        return np.where(is_hit[:, 0], right, wrong)
    return np.where(is_hit[:, 0], right, np.where(is_hit.any(axis=1), in_topk, wrong))


def _vary_classes(
    samples: npt.NDArray[np.int64], confidence: npt.NDArray[np.float32], labels: Counts
) -> list[int]:
    """By falling confidence, but every class's first before any class's second."""
    by_confidence = samples[np.argsort(-confidence[samples], kind="stable")]
    seen: dict[int, int] = {}
    turns = []
    for label in labels[by_confidence].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    order = np.argsort(np.asarray(turns, np.int64), kind="stable")
    return [int(sample) for sample in by_confidence[order][:_NUM_EXAMPLES]]


def _example(
    predictions: Predictions, sample: int, kind: str, class_names: Sequence[str]
) -> Example:
    label = int(predictions.labels[sample])
    classes = predictions.topk_classes[sample].tolist()
    probabilities = predictions.topk_probabilities[sample].tolist()
    bars = tuple(
        Bar(class_name=class_names[taken_for], share=share, is_right=taken_for == label)
        for taken_for, share in zip(classes, probabilities, strict=True)
    )
    return Example(sample=sample, class_name=class_names[label], kind=kind, bars=bars)
