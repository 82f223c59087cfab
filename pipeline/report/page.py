"""Puts a report's figures into its template. Needs the extra `report`."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe

from pipeline.metrics.outcomes import read_run_status
from pipeline.report.curves import draw_charts
from pipeline.report.images import MAX_NEAR_PIXELS, heat_image_uri, read_kernels, sample_uris
from pipeline.report.inputs import (
    SPLIT,
    Missing,
    Predictions,
    ShardSet,
    read_predictions,
    read_shard_set,
)
from pipeline.report.marks import find_marks
from pipeline.report.neighbours import nearest_images
from pipeline.report.predictions import (
    choose_examples,
    class_rows,
    confused_pairs,
    confusion_matrix,
    row_shares,
)
from pipeline.report.ranks import compare_ranks
from pipeline.report.summary import Summary
from pipeline.report.templates import environment
from pipeline.report.timeline import timeline
from pipeline.report.words import flatten
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import history_of, read_rows
from pipeline.run.ledger import SECOND_CLASSES, ledger_of
from pipeline.run.phase import PHASE_LABELS
from pipeline.run.settings import read_saved

_TEMPLATE = "page.html.j2"

_MAX_TABLE_CLASSES = 20
"""With more classes the confusion matrix is an image beside the most confused pairs."""

_MAX_CONFUSED_PAIRS = 20

_NUM_SHOWN_PAIRS = 8
"""Those of them that are shown as pictures."""

_MAX_HEAD_LETTERS = 100
"""In all column heads, if each were as long as the longest; with more they stand upright."""


def render(run: RunDirectory, num_neighbours: int = 0) -> str:
    """The page; for its nearest images, it searches among `num_neighbours` training images.

    Raises `ValueError` if `run` is not a run directory or its files are damaged.
    """
    settings = read_saved(run)
    network = settings["config"]["model"]["name"]
    faults: list[str] = []
    rows = list(read_rows(run.events, faults))
    events, summary = history_of(rows), Summary(rows)
    marks, now = find_marks(events), time.time()
    status = read_run_status(run, socket.gethostname(), now)
    is_running = status.outcome == "running"
    shard_set, start = read_shard_set(settings), summary.latest_start
    if isinstance(shard_set, Missing):
        title = start.shard_set if start else None
    else:
        title = shard_set.manifest.title
    predictions = read_predictions(run.predictions(SPLIT), shard_set, events)
    figures: dict[str, Any] = {}
    if not isinstance(predictions, Missing):
        train = read_shard_set(settings, "train")
        figures = _figures(run, predictions, shard_set, train, num_neighbours)
    return (
        environment()
        .get_template(_TEMPLATE)
        .render(
            run_name=run.name,
            recipe=settings["recipe"],
            network=network,
            hardware=settings.get("hardware"),
            setting_groups=_setting_groups(settings),
            title=title,
            summary=summary,
            is_running=is_running,
            faults=faults,
            timeline=timeline(rows),
            ledger=ledger_of(rows, now if is_running else None),
            second_classes=SECOND_CLASSES,
            ranks=compare_ranks(status),
            marks=marks,
            charts={
                name: markupsafe.Markup(svg)  # noqa: S704 - matplotlib has escaped its texts
                for name, svg in draw_charts(events, marks).items()
            },
            phase_names=PHASE_LABELS,
            kernels=read_kernels(run, network),
            predictions=predictions,
            **figures,
        )
    )


def _figures(
    run: RunDirectory,
    predictions: Predictions,
    shard_set: ShardSet | Missing,
    train: ShardSet | Missing,
    num_neighbours: int,
) -> dict[str, Any]:
    """What is drawn of the predictions."""
    if isinstance(shard_set, Missing):  # then the classes have only numbers
        num_classes = 1 + int(max(predictions.labels.max(), predictions.topk_classes.max()))
        names: Sequence[str] = [f"class {label}" for label in range(num_classes)]
    else:
        names = shard_set.manifest.class_names
    matrix = confusion_matrix(predictions, len(names))
    cards = class_rows(predictions, matrix, names)
    examples = choose_examples(predictions, names)
    pairs = confused_pairs(predictions, matrix, names, _MAX_CONFUSED_PAIRS)
    shown = pairs[:_NUM_SHOWN_PAIRS]
    pictures = {pair.mistaken for pair in shown} | {card.sample for card in (*cards, *examples)}
    pictures |= {pair.typical for pair in shown if pair.typical is not None}
    neighbours = nearest_images(
        run, shard_set, train, [example.sample for example in examples], num_neighbours
    )
    rows = {} if isinstance(neighbours, Missing) else neighbours.nearest
    near = {sample for row in rows.values() for sample, _ in row}
    images, image_fault = sample_uris(shard_set, sorted(pictures | rows.keys()))
    train_images, train_fault = sample_uris(train, sorted(near), MAX_NEAR_PIXELS)
    near_names = dict[int, str]()
    if not isinstance(train, Missing):
        near_names = {sample: names[train.index[sample]["label"]] for sample in near}
    small = len(names) <= _MAX_TABLE_CLASSES
    return {
        "class_names": names,
        "matrix": matrix.tolist() if small else None,
        "is_upright": len(names) * max(map(len, names)) > _MAX_HEAD_LETTERS,
        "matrix_shares": row_shares(matrix).tolist() if small else None,
        "heat_image": None if small else heat_image_uri(matrix),
        "pairs": pairs,
        "shown_pairs": shown,
        "class_rows": cards,
        "examples": examples,
        "images": images,
        "image_fault": image_fault,
        "neighbours": neighbours,
        "near_names": near_names,
        "train_images": train_images,
        "train_fault": train_fault,
    }


def _setting_groups(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Everything in `config.json` as names and values, in groups with a title each."""
    rest = {name: value for name, value in settings.items() if name not in ("config", "versions")}
    groups = {
        "Configuration": settings["config"],
        "Versions": settings.get("versions") or {},
        "Origin": rest,
    }
    return {title: dict(flatten(group)) for title, group in groups.items()}
