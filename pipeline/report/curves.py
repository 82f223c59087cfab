"""The report's curves, drawn by matplotlib as SVG that takes its colours from the page's CSS."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from pipeline.report.summary import Interval, evaluations, shares
from pipeline.run.event_log import of_type
from pipeline.run.events import EvalEvent, Event, RunEvent, SignalEvent
from pipeline.run.phase import PHASE_LABELS

_POINTS_PER_INCH = 72
_SIZE_POINTS = (400, 250)
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
    **{f"#0b000{number}": f"--phase-{label}" for number, label in enumerate(PHASE_LABELS)},
}
"""Stand-ins that matplotlib draws with, and the CSS variables that replace them: so one drawing
suits light and dark."""

_STAND_IN = {variable: color for color, variable in _COLORS.items()}


def accuracy_curves(intervals: Sequence[Interval], events: Sequence[Event]) -> str:
    """Train top-1 of each log interval, top-1 and top-5 of each evaluation, over epochs."""
    figure, axes = _chart()
    _draw_train(axes, intervals, [interval.top1 for interval in intervals])
    evals = evaluations(events)
    _draw_evaluations(axes, evals, [event.top5 for event in evals], "--right-soft")
    _draw_evaluations(axes, evals, [event.top1 for event in evals], "--right")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _svg(figure, "Accuracy over epochs")


def loss_curves(intervals: Sequence[Interval], events: Sequence[Event]) -> str:
    """Train loss of each log interval and loss of each evaluation, over epochs.

    Below it, small, the learning rate.
    """
    if not intervals:
        figure, axes = _chart()
    else:
        figure, axes = _chart(bottom=0.395)
        _draw_learning_rate(figure, axes, intervals)
    _draw_train(axes, intervals, [interval.loss for interval in intervals])
    evals = evaluations(events)
    _draw_evaluations(axes, evals, [event.loss for event in evals], "--right")
    return _svg(figure, "Loss and learning rate over epochs")


def _draw_learning_rate(figure: Figure, above: Axes, intervals: Sequence[Interval]) -> None:
    """Give the figure a second, low chart that shares the epochs of the one above."""
    below = figure.add_axes((_LEFT, _BOTTOM, _WIDTH, 0.17), sharex=above)
    _style(below)
    above.set_xlabel("")
    above.tick_params(labelbottom=False)
    epochs = [interval.last_epoch for interval in intervals]
    rates = [interval.learning_rate for interval in intervals]
    below.plot(epochs, rates, color=_STAND_IN["--ink-soft"], linewidth=1.2)
    below.set_ylim(bottom=0)
    below.yaxis.set_major_locator(MaxNLocator(nbins=2))
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def throughput_curve(intervals: Sequence[Interval], events: Sequence[Event]) -> str:
    """Images a second over epochs; resumes and stop requests are vertical lines."""
    figure, axes = _chart()
    speeds = [interval.images_per_second for interval in intervals]
    axes.plot(*_stairs(intervals, speeds), color=_STAND_IN["--right"], linewidth=1.4)
    for start in of_type(events, RunEvent):
        if start.resumed_from is not None:
            axes.axvline(start.epoch, color=_STAND_IN["--ink-soft"], dashes=(4, 3), linewidth=1)
    for request in of_type(events, SignalEvent):
        axes.axvline(request.epoch, color=_STAND_IN["--stop"], dashes=(1.5, 2), linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    return _svg(figure, "Images a second over epochs")


def phase_areas(intervals: Sequence[Interval]) -> str:
    """Share of each phase in the time of each log interval, stacked, over epochs."""
    figure, axes = _chart()
    timed = [interval for interval in intervals if shares(interval.phase_seconds)]
    for number, phase in enumerate(timed[0].phase_seconds if timed else ()):
        lower = [_share_below(interval, number) for interval in timed]
        upper = [_share_below(interval, number + 1) for interval in timed]
        epochs, floor = _stairs(timed, lower)
        axes.fill_between(
            epochs,
            floor,
            _stairs(timed, upper)[1],
            facecolor=_STAND_IN[f"--phase-{phase}"],
            linewidth=0,
        )
    axes.set_ylim(0, 1)
    axes.grid(visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _svg(figure, "Share of time by phase over epochs")


def _share_below(interval: Interval, number: int) -> float:
    """Share of the first `number` phases together."""
    return sum(list(shares(interval.phase_seconds).values())[:number])


def _stairs(intervals: Sequence[Interval], values: Sequence[float]) -> tuple[list[float], ...]:
    """Each value held from the beginning to the end of its interval."""
    epochs = [edge for row in intervals for edge in (row.first_epoch, row.last_epoch)]
    return epochs, [value for value in values for _ in range(2)]


def _draw_train(axes: Axes, intervals: Sequence[Interval], values: Sequence[float]) -> None:
    epochs = [interval.last_epoch for interval in intervals]
    marker = "o" if len(intervals) == 1 else ""
    axes.plot(
        epochs, values, color=_STAND_IN["--train"], linewidth=1.2, marker=marker, markersize=4
    )


def _draw_evaluations(
    axes: Axes, evals: Sequence[EvalEvent], values: Sequence[float | None], variable: str
) -> None:
    axes.plot(
        [event.epoch for event in evals],
        [np.nan if value is None else value for value in values],
        color=_STAND_IN[variable],
        linewidth=1.8,
        marker="o",
        markersize=4 if len(evals) <= 30 else 0,
    )


def _chart(bottom: float = _BOTTOM) -> tuple[Figure, Axes]:
    """An empty chart over epochs that leaves out what lies below `bottom`."""
    width, height = _SIZE_POINTS
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
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
    """The figure as an SVG element to put into a page, with `label` for those who cannot see it."""
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
