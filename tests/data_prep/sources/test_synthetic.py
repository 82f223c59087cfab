"""The source `synthetic`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.sources.source import Source
from data_prep.sources.synthetic import CLASS_NAMES, make_synthetic


def read_all(source: Source, split: str = "train") -> npt.NDArray[np.uint8]:
    """uint8 N×H×W×3."""
    return np.array([source.reader.read(sample) for sample in source.splits[split]])


def make(seed: int = 0, size: int = 32, num_train: int = 40) -> Source:
    return make_synthetic(seed=seed, size=size, num_train=num_train, num_val=20)


def test_images_depend_on_the_seed_alone() -> None:
    images = read_all(make())
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, read_all(make()))
    np.testing.assert_array_equal(images, read_all(make(num_train=80))[:40])
    assert not np.array_equal(images, read_all(make(seed=1)))


def test_no_image_comes_twice() -> None:
    source = make(num_train=400)
    images = np.concatenate([read_all(source), read_all(source, "val")])
    assert len({image.tobytes() for image in images}) == 420


def test_classes_are_balanced() -> None:
    labels = [sample.label for sample in make(num_train=400).splits["train"]]
    assert np.bincount(labels).tolist() == [40] * len(CLASS_NAMES)


def test_size() -> None:
    assert read_all(make(size=48, num_train=2)).shape == (2, 48, 48, 3)


def fit_and_score(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Share that a linear fit to the first half of the samples gets right in the other half."""
    half = len(labels) // 2
    inputs = np.column_stack([features, np.ones(len(labels))])
    weights = np.linalg.lstsq(inputs[:half], np.eye(10)[labels[:half]], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(axis=1) == labels[half:]).mean())


@pytest.mark.slow
def test_mean_colour_does_not_tell_the_class() -> None:
    source = make(num_train=2000)
    colours = read_all(source).mean(axis=(1, 2))
    labels = np.array([sample.label for sample in source.splits["train"]])
    assert fit_and_score(np.column_stack([colours, colours**2]), labels) < 0.16
    assert fit_and_score(np.column_stack([colours, labels == 3]), labels) > 0.16  # it can tell
