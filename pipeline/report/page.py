"""Puts a report's figures into its template. Needs the extra `report`."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from pipeline.report import curves
from pipeline.report.attempts import describe_ranks
from pipeline.report.images import Gallery, heat_image_uri
from pipeline.report.inputs import Inputs, Missing, Predictions, read_inputs
from pipeline.report.kernels import read_kernels
from pipeline.report.predictions import (
    choose_examples,
    class_rows,
    confused_pairs,
    confusion_matrix,
    row_shares,
)
from pipeline.report.summary import Summary, intervals, summarize
from pipeline.report.timeline import timeline
from pipeline.run.directory import RunDirectory
from pipeline.run.phase import PHASE_LABELS

_TEMPLATE = "page.html.j2"

_MAX_TABLE_CLASSES = 20
"""With more classes the confusion matrix is an image beside the most confused pairs."""

_MAX_CONFUSED_PAIRS = 20

_MAX_HEAD_LETTERS = 100
"""Of column heads side by side, all as long as the longest; longer ones stand upright."""


def render(run: RunDirectory) -> str:
    """The page. Raises `ValueError` if `run` is not a run directory or its files are damaged."""
    inputs = read_inputs(run)
    network = _network(inputs.settings["config"])
    summary = summarize(inputs.rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "utc": utc,
        "label_width": label_width,
        "breakable": breakable,
        "ranks": describe_ranks,
    }
    return environment.get_template(_TEMPLATE).render(
        run_name=run.name,
        recipe=inputs.settings.get("recipe"),
        network=network,
        hardware=inputs.settings.get("hardware"),
        setting_groups=_setting_groups(inputs.settings),
        title=_title(inputs, summary),
        summary=summary,
        faults=inputs.faults,
        timeline=timeline(inputs.rows),
        charts=_charts(inputs, summary),
        phase_names=PHASE_LABELS,
        **_kernel_context(run, network),
        **_prediction_context(inputs),
    )


def _network(config: Mapping[str, Any]) -> str | None:
    model = config.get("model")
    return model.get("name") if isinstance(model, dict) else None


def _title(inputs: Inputs, summary: Summary) -> str | None:
    """What the shard set is called; also where it is not there any more."""
    if not isinstance(inputs.shard_set, Missing):
        return inputs.shard_set.manifest.title
    return summary.latest_start.shard_set if summary.latest_start else None


def _charts(inputs: Inputs, summary: Summary) -> dict[str, markupsafe.Markup]:
    """The charts there is something to draw in, as SVG elements."""
    events, steps = inputs.events, intervals(inputs.events)
    charts: dict[str, str] = {}
    if steps or summary.final:
        charts["accuracy"] = curves.accuracy_curves(steps, events)
        charts["loss"] = curves.loss_curves(steps, events)
    if steps:
        charts["throughput"] = curves.throughput_curve(steps, events)
        charts["phases"] = curves.phase_areas(steps)
    return {name: markupsafe.Markup(svg) for name, svg in charts.items()}


def _kernel_context(run: RunDirectory, network: str | None) -> dict[str, Any]:
    """Figure 3 of the paper; both None for a network whose first kernels show nothing."""
    kernels = read_kernels(run, network)
    if isinstance(kernels, Missing):
        return {"kernels": None, "kernels_missing": kernels.reason}
    return {"kernels": kernels, "kernels_missing": None}


def _prediction_context(inputs: Inputs) -> dict[str, Any]:
    """What is drawn of the predictions; without them `predictions_missing` says why."""
    predictions = inputs.predictions
    if isinstance(predictions, Missing):
        return {"predictions": None, "predictions_missing": predictions.reason}
    names = _class_names(inputs, predictions)
    matrix = confusion_matrix(predictions, len(names))
    rows = class_rows(predictions, matrix, names)
    examples = choose_examples(predictions, names)
    gallery = Gallery(inputs.shard_set)
    samples = {row.example for row in rows} | {example.sample for example in examples}
    small = len(names) <= _MAX_TABLE_CLASSES
    return {
        "predictions": predictions,
        "class_names": names,
        "matrix": matrix.tolist() if small else None,
        "is_upright": len(names) * max(map(len, names)) > _MAX_HEAD_LETTERS,
        "matrix_shares": row_shares(matrix).tolist() if small else None,
        "heat_image": None if small else heat_image_uri(matrix),
        "pairs": confused_pairs(matrix, names, _MAX_CONFUSED_PAIRS),
        "class_rows": rows,
        "examples": examples,
        "images": {sample: gallery.uri(sample) for sample in sorted(samples)},
        "image_fault": gallery.fault,
    }


def _class_names(inputs: Inputs, predictions: Predictions) -> Sequence[str]:
    """By label; without a shard set the classes have only numbers."""
    if isinstance(inputs.shard_set, Missing):
        return [f"class {label}" for label in range(predictions.num_classes_seen)]
    return inputs.shard_set.manifest.class_names


def _setting_groups(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Everything in `config.json` as names and values, in groups with a title each."""
    rest = {name: value for name, value in settings.items() if name not in ("config", "versions")}
    groups = {
        "Configuration": settings["config"],
        "Versions": settings.get("versions") or {},
        "Origin": rest,
    }
    return {title: dict(_flatten(group)) for title, group in groups.items()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings under dotted names, as on the command line."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "–" if value in (None, "") else str(value)


def label_width(names: Iterable[str]) -> float:
    """Room to give the longest of the names beside its bar or row, in em; the rest is cut off."""
    return round(2.4 + 0.6 * min(max(map(len, names)), 20), 2)


def breakable(name: str) -> markupsafe.Markup:
    """A class name that may go on in the next line behind its signs, and nowhere in a word."""
    parts = re.split(r"(?<=[_/.,;:-])(?=[^\s_/.,;:-])", name)
    return markupsafe.Markup("<wbr>").join(parts)


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as per cent."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as '3 h 05 min'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def utc(timestamp: float) -> str:
    """Unix seconds as date and time, UTC."""
    moment = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
