"""Puts several runs into the template of their comparison. Needs the extra `report`."""

from __future__ import annotations

from collections.abc import Sequence

import markupsafe

from pipeline.report.comparison import differing_settings, read_compared, results
from pipeline.report.overlays import LINES, MAX_RUNS, draw_overlays
from pipeline.report.templates import environment
from pipeline.run.directory import RunDirectory


def render_comparison(runs: Sequence[RunDirectory]) -> str:
    """The page. Raises `ValueError` if no run can be read, or there are too many."""
    if len(runs) > MAX_RUNS:
        raise ValueError(
            f"{len(runs)} runs for one page; expected at most {MAX_RUNS}: leave some out"
        )
    found, faults = read_compared(runs)
    charts = {
        title: markupsafe.Markup(svg)  # noqa: S704 - matplotlib has escaped its texts
        for title, svg in draw_overlays(found).items()
    }
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            names=[run.name for run in found],
            dashes=[" ".join(map(str, line)) for line in LINES],
            faults=faults,
            charts=charts,
            tables={
                "What came of them": results(found),
                "Where their settings differ": differing_settings(found),
            },
        )
    )
