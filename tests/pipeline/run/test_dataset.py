"""What a network was trained on, written and read back, and refused where it is damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from pipeline.run.dataset import Dataset, read_dataset, write_dataset
from tests.formats.fixtures import VERSIONS

SHARDS = VERSIONS[0] / "shards" / "rgb"


def dataset(*, with_mean_image: bool) -> Dataset:
    manifest, sha256 = read_manifest(SHARDS), manifest_sha256(SHARDS)
    return Dataset.of_shards(SHARDS, manifest, sha256, with_mean_image=with_mean_image)


@pytest.mark.parametrize("with_mean_image", [False, True])
def test_it_is_read_as_it_was_written(with_mean_image: bool, tmp_path: Path) -> None:
    written = dataset(with_mean_image=with_mean_image)
    write_dataset(tmp_path, written)
    found = read_dataset(tmp_path)
    assert found.num_samples == {"train": 24, "val": 10}
    assert found.num_classes == len(read_manifest(SHARDS).class_names)
    for field in dataclasses.fields(Dataset):
        if field.name not in ("mean_image", "statistics"):
            assert getattr(found, field.name) == getattr(written, field.name)
    assert found.statistics.mean == written.statistics.mean
    assert found.statistics.pca_vectors == written.statistics.pca_vectors
    assert (found.mean_image is not None) is with_mean_image
    if with_mean_image:
        np.testing.assert_array_equal(found.mean_image, written.mean_image)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_dataset(tmp_path, written)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format_version": 2}, "has format version 2; this program reads up to version 1"),
        (
            {"class_names": "cat"},
            "damaged (class_names is 'cat', expected tuple[str, ...]): r",
        ),
        ({"class_names": []}, "damaged (class_names or mean_image_filename is not as written): r"),
        ({"class_names": ["cat", 1]}, "damaged (an entry of class_names is 1, expected str): rest"),
        (
            {"image_size": [32]},
            "damaged (image_size is (32,), expected tuple[int, int] | No",
        ),
        ({"encoding": "webp"}, "damaged (encoding is 'webp', expected jpeg or rgb or yuv420 or"),
        (
            {"num_samples": 3},
            "damaged (num_samples is 3, expected Mapping[str, int]): re",
        ),
        ({"num_samples": {"val": "3"}}, "damaged (num_samples['val'] is '3', expected int): rest"),
        ({"statistics": []}, "damaged ('tuple' object has no attribute 'items'): restore it"),
        ({"title": 1}, "damaged (title is 1, expected str): restore it"),
    ],
)
def test_a_damaged_file_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, dataset(with_mean_image=False))
    path = tmp_path / "data.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    with pytest.raises(ValueError, match=r"data\.json") as error:
        read_dataset(tmp_path)
    assert sentence in str(error.value)
    path.write_text('{"format_version": 1')
    with pytest.raises(ValueError, match=r"is damaged .* restore it from a copy"):
        read_dataset(tmp_path)


def test_a_mean_image_that_is_another_one_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, dataset(with_mean_image=True))
    image = np.load(tmp_path / "mean_image.npy")
    np.save(tmp_path / "mean_image.npy", image + 1)
    with pytest.raises(ValueError, match=r"mean_image.npy: its sha256 is not"):
        read_dataset(tmp_path)
    np.save(tmp_path / "mean_image.npy", np.array([image, None], dtype=object))
    with pytest.raises(ValueError, match=r"mean_image.npy: (not an .npy file|holds)"):
        read_dataset(tmp_path)
