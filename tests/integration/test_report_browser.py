"""The report in a real Chromium, on a desk and on a phone: what is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.report.__main__ import main
from tests.integration.browser import browser_page
from tests.pipeline.fake_run import write_run
from tests.pipeline.report.report_page import SECTIONS

NAMES = (
    "black-and-gold garden spider",
    "Staffordshire_bullterrier",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
PAGE_RGB = {False: (0xFA, 0xF9, 0xF6), True: (0x13, 0x16, 0x19)}
RIGHT_RGB = {False: (0x0B, 0x69, 0xAD), True: (0x5F, 0xB0, 0xEC)}

BOXES = """[...document.querySelectorAll(%r)].map(e => {
    const box = e.getBoundingClientRect();
    return [box.left, box.top + scrollY, box.width, box.height]})"""
BARS = """[...document.querySelectorAll('.bars .track')].map(track => [
    parseFloat(track.firstElementChild.style.getPropertyValue('--share')),
    track.firstElementChild.getBoundingClientRect().width / track.getBoundingClientRect().width])"""
CUT = """[...document.querySelectorAll('.stacked th, .stacked td')].filter(cell =>
    cell.getBoundingClientRect().right > innerWidth || cell.scrollWidth > cell.clientWidth + 1
).map(cell => cell.innerText)"""
BROKEN_WORDS = """[...document.querySelectorAll('.matrix th, .card h3')].flatMap(place => {
    const broken = [], walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/[A-Za-z]+/g)) {
        const range = document.createRange();
        range.setStart(walker.currentNode, word.index);
        range.setEnd(walker.currentNode, word.index + word[0].length);
        if (range.getClientRects().length > 1) broken.push(word[0]);
    }
    return broken})"""
PHOTOS = "[...document.images].map(image => image.complete && image.naturalWidth)"


def num_pixels(screen: npt.NDArray[np.uint8], color: tuple[int, int, int]) -> int:
    return int((np.abs(screen.astype(int) - color).max(axis=2) <= 2).sum())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report_is_drawn(tmp_path: Path, width: int, dark: bool) -> None:
    run = write_run(tmp_path, NAMES)
    assert main([str(run.path)]) == 0
    with browser_page(tmp_path / "profile") as page:
        page.open(run.report, width=width, height=900, dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in SECTIONS:
            ((left, _, box_width, box_height),) = page.evaluate(BOXES % f"#{name}")
            assert left >= 0
            assert left + box_width <= width
            assert box_width > width / 2
            assert box_height > 20
        screen = page.screenshot()
        charts = page.evaluate(BOXES % "svg")
        bars = page.evaluate(BARS)
        photos = page.evaluate(PHOTOS)
        assert len(page.evaluate(BOXES % ".stacked td.soft")) > 5
        assert page.evaluate(CUT) == []
        assert page.evaluate(BROKEN_WORDS) == []
        assert page.low_contrasts() == []
        assert page.requests == [run.report.resolve().as_uri()]

    assert screen.shape[0] > 2000
    assert num_pixels(screen, PAGE_RGB[dark]) > screen[..., 0].size * 0.1
    assert num_pixels(screen, RIGHT_RGB[dark]) > 2000
    assert len(charts) == 4
    for left, top, box_width, box_height in charts[:3]:
        area = screen[int(top) : int(top + box_height), int(left) : int(left + box_width)]
        assert num_pixels(area, RIGHT_RGB[dark]) > 50, "the curve is not drawn"
    assert len(bars) == 10 * 10 + 8 * 5
    for share, drawn in bars:
        assert drawn == pytest.approx(share, abs=0.01)
    assert photos == [16] * (18 + 2 * 8)


@pytest.mark.parametrize("width", [1280, 390])
def test_comparison_is_drawn(tmp_path: Path, width: int) -> None:
    runs = [write_run(tmp_path / name, NAMES) for name in ("one", "two")]
    page_path = tmp_path / "page.html"
    assert main([*(str(run.path) for run in runs), "--output", str(page_path)]) == 0
    with browser_page(tmp_path / "profile") as page:
        page.open(page_path, width=width, height=900)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.low_contrasts() == []
        screen, charts = page.screenshot(), page.evaluate(BOXES % ".chart svg")
        assert page.requests == [page_path.resolve().as_uri()]
    assert len(charts) == 4
    for left, top, box_width, box_height in charts:
        area = screen[int(top) : int(top + box_height), int(left) : int(left + box_width)]
        assert num_pixels(area, (0xC2, 0x41, 0x0C)) > 10, "the second run's curve is not drawn"


A4_POINTS = (595, 842)
PAPER_PIXELS = 695
"""Width of what is printed on A4 between its margins, in CSS pixels."""


def test_report_prints_on_a4_in_full_and_in_colour(tmp_path: Path) -> None:
    """Also where the system is set to dark colours, which no paper has."""
    run = write_run(tmp_path, NAMES)
    assert main([str(run.path)]) == 0
    with browser_page(tmp_path / "profile") as page:
        page.open(run.report, width=PAPER_PIXELS, height=900, dark=True)
        printed = page.printed()
        page.emulate_print()
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER_PIXELS
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        bar = "getComputedStyle(document.querySelector('.ledger .stack span'))"
        assert page.evaluate(f"{bar}.printColorAdjust") == "exact"
        assert page.evaluate("document.querySelector('#configuration').open") is False
        ((_, _, width, height),) = page.evaluate(BOXES % "#configuration table:last-of-type")
        assert width > 400
        assert height > 40
        assert page.low_contrasts() == []
    sizes = re.findall(rb"/MediaBox \[0 0 ([0-9.]+) ([0-9.]+)\]", printed)
    assert 3 <= len(sizes) <= 12
    for size in sizes:
        assert [float(side) for side in size] == pytest.approx(A4_POINTS, abs=1)
