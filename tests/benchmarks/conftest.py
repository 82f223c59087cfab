"""Images that the benchmarks of the data path are tried with."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.data_prep.raw_data import make_pixels

NUM_IMAGES = 24


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of JPEGs, as that of the ImageNet sample: several sizes, one of them gray."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        pixels = make_pixels(number, height=240 + 8 * number, width=400 - 8 * number)
        image = Image.fromarray(pixels).convert("L" if number == 5 else "RGB")
        image.save(folder / f"n{number:08d}_name.JPEG")
    return folder
