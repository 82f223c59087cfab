"""The curves of a run, over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from pipeline.report.chart import BOTTOM, LEFT, STAND_IN, WIDTH, as_svg, new_chart, style
from pipeline.report.marks import MarkKind, describe_marks
from pipeline.report.summary import evaluations, interval_edges, intervals
from pipeline.run.events import EvalEvent, Event, TrainEvent
from pipeline.run.phase import PHASE_LABELS

Marks = Mapping[MarkKind, Sequence[float]]
"""Epochs by kind: see `pipeline.report.marks`."""


def draw_charts(events: Sequence[Event], marks: Marks) -> dict[str, str]:
    """The charts that there is something to draw in, over epochs, as SVG elements."""
    steps, evals = intervals(events), evaluations(events)
    charts = {}
    if steps or evals:
        charts["accuracy"] = _accuracy(steps, evals, marks)
        charts["loss"] = _loss(steps, evals, marks)
    if steps:
        edges = interval_edges(events, steps)
        charts["throughput"] = _throughput(steps, edges, marks)
        charts["phases"] = _phases(steps, edges)
    return charts


def _accuracy(steps: Sequence[TrainEvent], evals: Sequence[EvalEvent], marks: Marks) -> str:
    """Train top-1 of each log interval, top-1 and top-5 of each evaluation."""
    figure, axes = new_chart()
    _plot(axes, steps, [row.top1 for row in steps], "--train")
    _plot(axes, evals, [row.top5 for row in evals], "--right-soft", width=1.8, max_dots=30)
    _plot(axes, evals, [row.top1 for row in evals], "--right", width=1.8, max_dots=30)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _marked(figure, axes, marks, "Accuracy over epochs")


def _loss(steps: Sequence[TrainEvent], evals: Sequence[EvalEvent], marks: Marks) -> str:
    """Train loss of each log interval and loss of each evaluation; below, the learning rate."""
    figure, axes = new_chart(bottom=0.395 if steps else BOTTOM)
    if steps:
        below = figure.add_axes((LEFT, BOTTOM, WIDTH, 0.17), sharex=axes)
        style(below)
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)
        _plot(below, steps, [row.learning_rate for row in steps], "--ink-soft")
        below.set_ylim(bottom=0)
        below.yaxis.set_major_locator(MaxNLocator(nbins=2, steps=[1, 2, 5, 10]))
        below.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _plot(axes, steps, [row.loss for row in steps], "--train")
    _plot(axes, evals, [row.loss for row in evals], "--right", width=1.8, max_dots=30)
    return _marked(figure, axes, marks, "Loss and learning rate over epochs")


def _plot(
    axes: Axes,
    rows: Sequence[TrainEvent] | Sequence[EvalEvent],
    values: Sequence[float | None],
    variable: str,
    width: float = 1.2,
    max_dots: int = 1,
) -> None:
    """A line over epochs, with a dot for each value if these are few."""
    marker = "o" if len(rows) <= max_dots else ""
    axes.plot(
        [row.epoch for row in rows],
        np.array(values, np.float64),  # None becomes NaN
        color=STAND_IN[variable],
        linewidth=width,
        marker=marker,
        markersize=4,
    )


def _throughput(steps: Sequence[TrainEvent], edges: Sequence[float], marks: Marks) -> str:
    """Images a second."""
    figure, axes = new_chart()
    speeds = [row.images_per_second for row in steps]
    axes.stairs(speeds, edges, baseline=None, color=STAND_IN["--right"], linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    return _marked(figure, axes, marks, "Images a second over epochs")


def _marked(figure: Figure, axes: Axes, marks: Marks, label: str) -> str:
    """The figure with its marks: lines of different dashes, and alarms as triangles at the foot."""
    foot = axes.get_xaxis_transform()
    dashes: tuple[float, ...]
    for kind, epochs in marks.items():
        match kind:
            case "resumed":
                variable, dashes = "--ink-soft", (4, 3)
            case "stop requested":
                variable, dashes = "--stop", (1.5, 2)
            case "learning rate lowered":
                variable, dashes = "--drop", (6, 2, 1.5, 2)
            case "alarm":
                color, places = STAND_IN["--alarm"], [0.022] * len(epochs)
                axes.plot(epochs, places, "^", color=color, markersize=7, transform=foot)
                continue
            case unknown:
                assert_never(unknown)
        for epoch in epochs:
            axes.axvline(epoch, color=STAND_IN[variable], dashes=dashes, linewidth=1, zorder=1)
    words = describe_marks(marks)
    return as_svg(figure, f"{label}. Marked: {words}" if words else label)


def _phases(steps: Sequence[TrainEvent], edges: Sequence[float]) -> str:
    """Share of each phase in the time of each log interval, stacked."""
    figure, axes = new_chart()
    seconds = np.array([list(row.phase_seconds.values()) for row in steps], np.float64)
    totals = seconds.sum(axis=1, keepdims=True)
    tops = (seconds / np.where(totals > 0, totals, 1)).cumsum(axis=1).T
    for phase, floor, top in zip(PHASE_LABELS, [0 * tops[0], *tops], tops, strict=False):
        color = STAND_IN[f"--phase-{phase}"]
        axes.stairs(top, edges, baseline=floor, fill=True, facecolor=color, linewidth=0)
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return as_svg(figure, "Share of time by phase over epochs")
