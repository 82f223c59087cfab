"""One tiny round of the conversions, and the memory of ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.convert import memory, rates
from benchmarks.image_folder import find_images


def test_conversions_are_compared(images: Path, tmp_path: Path) -> None:
    found = rates(find_images(images), tmp_path, rounds=1, num_images=30)
    ffcv = {"ffcv"} if find_spec("ffcv") else set()
    for encoding, others in (("jpeg", {"its parts", "webdataset"}), ("rgb", {"its parts"})):
        row = found[encoding]
        assert not row["failed"]
        assert set(row["images_per_second"]) == {"ours"} | others | ffcv
        assert set(row["ratios"]) == {f"ours / {other}" for other in others | ffcv}


def test_memory_is_told_by_encoding_and_number(images: Path, tmp_path: Path) -> None:
    found = memory(find_images(images), tmp_path, counts=(24, 48))
    for encoding in ("jpeg", "rgb"):
        assert set(found[encoding]) == {"24 images", "48 images", "last against first"}
        assert found[encoding]["48 images"]["peak_bytes"] > 20e6
        assert 0.7 < found[encoding]["last against first"] < 1.4
