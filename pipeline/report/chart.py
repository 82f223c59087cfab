"""What all charts of reports have in common: matplotlib's SVG, with colours of the page's CSS."""

from __future__ import annotations

import html
import io
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from pipeline.run.phase import PHASE_LABELS

_SIZE_INCHES = (400 / 72, 250 / 72)
LEFT, WIDTH = 0.115, 0.865
BOTTOM, TOP = 0.145, 0.97
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
    **{f"#0c000{number}": f"--run-{number}" for number in range(8)},
    **{f"#0b000{number}": f"--phase-{label}" for number, label in enumerate(PHASE_LABELS)},
}
"""Colours that matplotlib draws with, and the CSS variables that replace them, so that a drawing
suits light and dark pages."""

STAND_IN = {variable: color for color, variable in _COLORS.items()}


def new_chart(bottom: float = BOTTOM) -> tuple[Figure, Axes]:
    """An empty chart over epochs, from `bottom` up."""
    figure = Figure(figsize=_SIZE_INCHES)
    axes = figure.add_axes((LEFT, bottom, WIDTH, TOP - bottom))
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """No frame, quiet horizontal rules."""
    axes.set_xlabel("epoch", color=STAND_IN["--ink-soft"], fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.tick_params(length=0, labelsize=10, labelcolor=STAND_IN["--ink-soft"], pad=5)
    axes.grid(axis="y", color=STAND_IN["--rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(STAND_IN["--rule"])
    axes.margins(x=0.015)  # room for the last marker


def as_svg(figure: Figure, label: str) -> str:
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
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
