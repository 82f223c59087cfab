"""The figure of predictions in a real Chromium, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.predict.__main__ import main
from tests.data_prep.raw_data import jpeg
from tests.data_prep.shard_set.test_image_files import make_tar
from tests.integration.browser import browser_page
from tests.pipeline.trained_run import unpack_usable_run

FIGURES = """[...document.querySelectorAll('figure')].map(figure => {
    const box = figure.getBoundingClientRect(), image = figure.querySelector('img');
    return [box.left, box.right, image.complete && image.naturalWidth,
            figure.querySelector('figcaption').innerText]})"""
BARS = """[...document.querySelectorAll('li')].map(bar => [
    parseFloat(bar.querySelector('.value').innerText) / 100,
    bar.querySelector('.track span').getBoundingClientRect().width /
        bar.querySelector('.track').getBoundingClientRect().width])"""


def test_the_page_of_predictions_is_drawn(tmp_path: Path) -> None:
    run, page_file = unpack_usable_run(tmp_path), tmp_path / "page.html"
    names = ["<b>bold &amp; wide.jpg", f"{'long' * 30}.jpg", "large.jpg"]
    sizes = ((40, 60), (60, 40), (300, 500))
    images = {
        name: jpeg(number, *size)
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    tar = make_tar(tmp_path / "images.tar", images | {"large.cls": b"0"})
    assert main([str(run), str(tar), "--figure", str(page_file), "--top", "10"]) == 0
    with browser_page(tmp_path / "profile") as page:
        for width in (1280, 390):
            page.open(page_file, width=width, height=900, dark=width == 390)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = page.evaluate(FIGURES)
            assert [name for *_, name in found] == [f"{tar.name}:{name}" for name in names]
            for left, right, picture_width, _ in found:
                assert 0 <= left < right <= width
                assert picture_width > 0
            bars = page.evaluate(BARS)
            assert len(bars) == 30
            for share, drawn in bars:
                assert drawn == pytest.approx(share, abs=0.015)
            assert page.evaluate("document.querySelectorAll('li.right').length") == 1
        assert page.requests == [page_file.as_uri()] * 2
