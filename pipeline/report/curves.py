"""The report's curves, drawn by matplotlib as SVG that takes its colours from the page's CSS."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import assert_never

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from pipeline.report.marks import MarkKind, describe_marks
from pipeline.report.summary import evaluations, interval_edges, intervals
from pipeline.run.events import EvalEvent, Event, TrainEvent
from pipeline.run.phase import PHASE_LABELS

_SIZE_INCHES = (400 / 72, 250 / 72)
_LEFT, _WIDTH = 0.115, 0.865
_BOTTOM, _TOP = 0.145, 0.97
"""Edges of a chart as shares of the figure: all begin at the same height on the page."""

_COLORS = {
    "#010101": "--ink-soft",
    "#020202": "--rule",
    "#0a0001": "--right",
    "#0a0002": "--right-soft",
    "#0a0003": "--train",
    "#0a0004": "--stop",
    "#0a0005": "--drop",
    "#0a0006": "--alarm",
    **{f"#0b000{number}": f"--phase-{label}" for number, label in enumerate(PHASE_LABELS)},
}
"""Colours that matplotlib draws with, and the CSS variables that replace them, so that a drawing
suits light and dark pages."""

_STAND_IN = {variable: color for color, variable in _COLORS.items()}


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
    figure, axes = _chart()
    _plot(axes, steps, [row.top1 for row in steps], "--train")
    _plot(axes, evals, [row.top5 for row in evals], "--right-soft", width=1.8, max_dots=30)
    _plot(axes, evals, [row.top1 for row in evals], "--right", width=1.8, max_dots=30)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _marked(figure, axes, marks, "Accuracy over epochs")


def _loss(steps: Sequence[TrainEvent], evals: Sequence[EvalEvent], marks: Marks) -> str:
    """Train loss of each log interval and loss of each evaluation; below, the learning rate."""
    figure, axes = _chart(bottom=0.395 if steps else _BOTTOM)
    if steps:
        below = figure.add_axes((_LEFT, _BOTTOM, _WIDTH, 0.17), sharex=axes)
        _style(below)
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
        color=_STAND_IN[variable],
        linewidth=width,
        marker=marker,
        markersize=4,
    )


def _throughput(steps: Sequence[TrainEvent], edges: Sequence[float], marks: Marks) -> str:
    """Images a second."""
    figure, axes = _chart()
    speeds = [row.images_per_second for row in steps]
    axes.stairs(speeds, edges, baseline=None, color=_STAND_IN["--right"], linewidth=1.4)
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
                color, places = _STAND_IN["--alarm"], [0.022] * len(epochs)
                axes.plot(epochs, places, "^", color=color, markersize=7, transform=foot)
                continue
            case unknown:
                assert_never(unknown)
        for epoch in epochs:
            axes.axvline(epoch, color=_STAND_IN[variable], dashes=dashes, linewidth=1, zorder=1)
    words = describe_marks(marks)
    return _svg(figure, f"{label}. Marked: {words}" if words else label)


def _phases(steps: Sequence[TrainEvent], edges: Sequence[float]) -> str:
    """Share of each phase in the time of each log interval, stacked."""
    figure, axes = _chart()
    seconds = np.array([list(row.phase_seconds.values()) for row in steps], np.float64)
    totals = seconds.sum(axis=1, keepdims=True)
    tops = (seconds / np.where(totals > 0, totals, 1)).cumsum(axis=1).T
    for phase, floor, top in zip(PHASE_LABELS, [0 * tops[0], *tops], tops, strict=False):
        color = _STAND_IN[f"--phase-{phase}"]
        axes.stairs(top, edges, baseline=floor, fill=True, facecolor=color, linewidth=0)
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _svg(figure, "Share of time by phase over epochs")


def _chart(bottom: float = _BOTTOM) -> tuple[Figure, Axes]:
    """An empty chart over epochs, from `bottom` up."""
    figure = Figure(figsize=_SIZE_INCHES)
    axes = figure.add_axes((_LEFT, bottom, _WIDTH, _TOP - bottom))
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    """No frame, quiet horizontal rules."""
    axes.set_xlabel("epoch", color=_STAND_IN["--ink-soft"], fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(length=0, labelsize=10, labelcolor=_STAND_IN["--ink-soft"], pad=5)
    axes.grid(axis="y", color=_STAND_IN["--rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_STAND_IN["--rule"])
    axes.margins(x=0.015)  # room for the last marker


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element for a page, with `label` for screen readers."""
    for axes in figure.axes:
        axes.set_xlim(left=0)
    buffer = io.StringIO()
    # The salt keeps the ids of several drawings on one page apart; no date, so that the same run
    # gives the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = buffer.getvalue()
    # The page has its own style, and the names of groups would clash between drawings.
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?<=["(])#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    for color, variable in _COLORS.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
