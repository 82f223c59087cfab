"""What a report shows, read back from its page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.report.page import render
from pipeline.run.directory import RunDirectory
from tests.pipeline.report.html_tree import Element, parse

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")
"""Classes of the runs in the tests."""

SECTIONS = ("headline", "curves", "time", "confusion", "classes", "examples", "configuration")
"""Ids of the parts of every report."""


def page_of(run: RunDirectory) -> Element:
    return parse(render(run))


def saved_predictions(run: RunDirectory) -> dict[str, npt.NDArray[Any]]:
    with np.load(run.predictions("val")) as arrays:
        return dict(arrays)


def bars_of(card: Element) -> list[tuple[str, bool, float, str]]:
    """Class name, whether it is marked as right, drawn share and written value of each bar."""
    bars = []
    for item in card.one("ul", "bars").all("li"):
        (bar,) = (e for e in item.everything() if "--share" in e.attributes.get("style", ""))
        share = float(bar.attributes["style"].removeprefix("--share: "))
        name = item.one("span", "name")
        marked = "right" in item.classes
        assert name.text.startswith("✓ ") == marked
        bars.append((name.attributes["title"], marked, share, item.one("span", "value").text))
    return bars


def image_of(card: Element) -> npt.NDArray[np.uint8]:
    uri = card.one("img", "photo").attributes["src"]
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)
