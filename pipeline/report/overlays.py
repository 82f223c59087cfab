"""The curves of several runs in one chart each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from pipeline.report.chart import STAND_IN, as_svg, new_chart
from pipeline.report.comparison import ComparedRun
from pipeline.report.summary import evaluations, intervals
from pipeline.run.events import EvalEvent, Event, TrainEvent

LINES: Sequence[tuple[float, ...]] = (
    *((), (6, 2), (2, 2), (8, 2, 2, 2), (12, 3), (4, 2, 1, 2, 1, 2), (1, 3), (10, 2, 4, 2)),
)
"""The dashes of each run's lines, in points: runs differ without their colours, too."""

MAX_RUNS = len(LINES)


@dataclass(frozen=True, slots=True)
class _Curve:
    rows_of: Callable[[Sequence[Event]], Sequence[EvalEvent] | Sequence[TrainEvent]]
    field: str
    form: str
    """Of the numbers at the axis; % for a share."""


_CURVES: Mapping[str, _Curve] = {
    "Validation top-1": _Curve(evaluations, "top1", "%"),
    "Validation loss": _Curve(evaluations, "loss", "{x:g}"),
    "Training loss": _Curve(intervals, "loss", "{x:g}"),
    "Images a second": _Curve(intervals, "images_per_second", "{x:,.10g}"),
}


def draw_overlays(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """SVG elements by title, over epochs, of all that a run has; at most `MAX_RUNS` runs."""
    charts = {}
    for title, curve in _CURVES.items():
        figure, axes = new_chart()
        last = []
        for number, run in enumerate(runs):
            rows = curve.rows_of(run.history)
            values = np.array([getattr(row, curve.field) for row in rows], np.float64)
            if not len(values):
                continue
            epochs, color = [row.epoch for row in rows], STAND_IN[f"--run-{number}"]
            marker = "o" if len(values) == 1 else ""
            (line,) = axes.plot(epochs, values, color=color, linewidth=1.6, marker=marker)
            if LINES[number]:
                line.set_dashes(LINES[number])
            last.append(f"{run.name} {values[-1]:.4g}")
        if not last:
            continue
        if curve.form == "%":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.yaxis.set_major_formatter(StrMethodFormatter(curve.form))
        charts[title] = as_svg(figure, f"{title} over epochs. At the end: {', '.join(last)}")
    return charts
