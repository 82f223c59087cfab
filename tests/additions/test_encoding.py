"""What it takes to add an encoding: its name and its codec, and all commands know it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.additions.scratch import Scratch
from tests.data_prep.raw_data import write_folder

pytestmark = pytest.mark.slow


def read_copies(scratch: Scratch, shards: Path) -> list[npt.NDArray[np.uint8]]:
    path = shards.with_suffix(".read")
    scratch.python("-m", "tests.additions.read_images", shards, path)
    with path.open("rb") as file:
        return [np.load(file) for _ in range(2)]


def test_an_encoding_is_a_name_and_a_codec(scratch: Scratch, tmp_path: Path) -> None:
    """PNG keeps the pixels of JPEGs as they are, so all that is read is the same as of them."""
    raw = write_folder(tmp_path / "raw")
    shards = {name: tmp_path / name for name in ("jpeg", "png")}
    for name, folder in shards.items():
        words = ("data_prep", "shard", "folder", "--input", raw, "--output", folder)
        scratch.python("-m", *words, "--encoding", name)
        assert "no damage found" in scratch.python("-m", "data_prep", "verify", folder, "--full")
    with tarfile.open(shards["png"] / "val-000000.tar") as tar:
        member = tar.getmembers()[0]
        file = tar.extractfile(member)
        assert file is not None
        assert member.name.endswith(".png")
        assert Image.open(file).format == "PNG"
    of_jpeg, of_png = (read_copies(scratch, folder) for folder in shards.values())
    for found, expected in zip(of_png, of_jpeg, strict=True):
        assert np.array_equal(found, expected)
        assert found.any()


def test_what_has_no_effect_or_no_place_with_it_is_refused(
    scratch: Scratch, tmp_path: Path
) -> None:
    raw, shards = write_folder(tmp_path / "raw"), tmp_path / "shards"
    words = ("-m", "data_prep", "shard", "folder", "--input", raw, "--output", shards)
    complaint = scratch.fail(*words, "--encoding", "png", "--jpeg-quality", 90)
    assert "--jpeg-quality has no effect with --encoding png" in complaint
    scratch.python(*words, "--encoding", "png")
    complaint = scratch.fail("-m", "data_prep", "beton", shards, tmp_path / "out.beton")
    assert "a .beton cannot hold images of encoding png" in complaint
    path = shards / "val-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    complaint = scratch.fail("-m", "data_prep", "verify", shards, "--full")
    assert "its image does not decode: " in complaint
