"""The folders that the benchmarks of the data path start from."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.image_folder import find_images, link_images, shrink_images
from tests.benchmarks.conftest import NUM_IMAGES


def test_images_are_linked_over_and_over_under_other_names(images: Path, tmp_path: Path) -> None:
    found = find_images(images)
    assert len(found) == NUM_IMAGES
    root = link_images(found, tmp_path / "linked", 2 * NUM_IMAGES)
    train = sorted((root / "train").glob("*/*"))
    assert len({path.name for path in train}) == 2 * NUM_IMAGES
    assert sorted(path.resolve() for path in train) == sorted(2 * found)
    classes = sorted(path.name for path in (root / "train").iterdir())
    assert classes == sorted(path.name for path in (root / "val").iterdir())
    assert classes
    assert all(len(list((root / "val" / name).iterdir())) == 1 for name in classes)


def test_shrunk_images_are_jpegs_of_256_pixels(images: Path, tmp_path: Path) -> None:
    shrunk = shrink_images(find_images(images)[:6], tmp_path / "shrunk")
    assert len(shrunk) == 6
    for path in shrunk:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("none here")
    with pytest.raises(ValueError, match="has 0 images ending in"):
        find_images(tmp_path)
