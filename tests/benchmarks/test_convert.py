"""One tiny round of the conversions, and the memory of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import convert
from benchmarks.competition import Course, compete
from benchmarks.convert import make_competitors, memory
from benchmarks.image_folder import find_images, link_images


def test_conversions_are_compared(images: Path, tmp_path: Path) -> None:
    """All but ffcv's, which takes many seconds to import."""
    folder = link_images(find_images(images), tmp_path / "linked", 30)
    course = Course(images=folder, setting="jpeg256", scratch=tmp_path)
    competitors = [one for one in make_competitors("jpeg256", 30) if one.name != "ffcv"]
    result = compete(competitors, course, 1)
    assert not result.failed
    assert set(result.rates) == {"ours", "its parts", "webdataset"}


def test_memory_is_reported_by_encoding_and_number(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it is measured, `test_memory` looks at: a short command may have ended before a look."""
    peaks = iter((100, 200, 150, 300))

    def run(command: Sequence[object]) -> tuple[int, float]:
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        return next(peaks), 0.5

    monkeypatch.setattr(convert, "peak_bytes", run)
    found = memory(find_images(images), tmp_path, counts=(24, 48))
    assert found == {
        "jpeg": {
            "24 images": {"peak_bytes": 100, "images_per_second": 48},
            "48 images": {"peak_bytes": 150, "images_per_second": 96},
            "last against first": 1.5,
        },
        "rgb": {
            "24 images": {"peak_bytes": 200, "images_per_second": 48},
            "48 images": {"peak_bytes": 300, "images_per_second": 96},
            "last against first": 1.5,
        },
    }
