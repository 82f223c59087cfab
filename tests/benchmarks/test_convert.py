"""One tiny round of the conversions, and the memory of ours."""

from __future__ import annotations

from pathlib import Path

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


def test_memory_is_reported_by_encoding_and_number(images: Path, tmp_path: Path) -> None:
    found = memory(find_images(images), tmp_path, counts=(24, 48))
    for encoding in ("jpeg", "rgb"):
        assert set(found[encoding]) == {"24 images", "48 images", "last against first"}
        assert found[encoding]["48 images"]["peak_bytes"] > 20e6
        assert 0.7 < found[encoding]["last against first"] < 1.4
