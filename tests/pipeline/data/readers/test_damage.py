"""Damaged images: replaced and counted up to a limit, the same way on every rank."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.shard_set.manifest import Encoding, Manifest, ShardSetError, read_manifest
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import evaluation_crop_policy
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.open import open_reader as open_split
from pipeline.data.readers.sample_index import ReadCost
from tests.data_prep.raw_data import ENCODINGS
from tests.pipeline.fake_run import make_images, write_shard_set

NUM_SAMPLES = 30
LABELS = np.arange(NUM_SAMPLES) * 7 % 10
IMAGES = make_images(LABELS)


@pytest.fixture(params=(*ENCODINGS, "yuv420"))
def shards(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    encoding: Encoding = request.param
    names = [f"class-{label}" for label in range(10)]
    write_shard_set(tmp_path / "shards", IMAGES, LABELS, names, encoding, 10)
    return tmp_path / "shards"


def open_reader(shards: Path, max_corrupt: int) -> contextlib.closing[FileReader]:
    shard_set = ShardSet(shards, read_manifest(shards), None)
    crop_policy = evaluation_crop_policy(AugmentConfig(), shard_set.manifest.image_size)
    config = DataConfig(decode_threads=2)
    return contextlib.closing(
        open_split(config, shard_set, "val", crop_policy, max_corrupt, files=None)
    )


def flip_bit(shards: Path, sample: int) -> None:
    manifest: Manifest = read_manifest(shards)
    split = manifest.split("val")
    row = np.load(shards / split.index_filename)[sample]
    with (shards / split.filenames[row["shard"]]).open("r+b") as file:
        file.seek(int(row["offset"]) + int(row["num_bytes"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def read(
    reader: FileReader, samples: list[int]
) -> tuple[npt.NDArray[np.uint8], list[int], ReadCost]:
    images = np.zeros((len(samples), *reader.image_shape), np.uint8)
    labels, cost, _ = reader.read(np.array(samples), 0, images)
    return images, labels.tolist(), cost


def test_the_next_good_sample_stands_in_with_its_label(shards: Path) -> None:
    with open_reader(shards, 0) as reader:
        whole, _, _ = read(reader, list(range(NUM_SAMPLES)))
    for sample in (4, 5, 29):
        flip_bit(shards, sample)
    with open_reader(shards, 3) as reader:
        images, labels, cost = read(reader, [3, 4, 29, 5, 6])
        expected = [3, 6, 0, 6, 6]
        assert labels == LABELS[expected].tolist()
        assert np.array_equal(images, whole[expected])
        assert (cost.num_samples, cost.num_replaced) == (5, 3)
        assert sorted(damage.sample for damage in cost.damages) == [4, 5, 29]
        for damage in cost.damages:
            assert damage.shard == f"val-{damage.sample // 10:06d}.tar"
            assert f"member {damage.sample:06d}." in damage.what
            assert "not the image that was written (CRC-32)" in damage.what
        images, labels, cost = read(reader, [5, 4])
        assert labels == LABELS[[6, 6]].tolist()
        assert np.array_equal(images, whole[[6, 6]])
        assert cost.num_replaced == 2
        assert cost.damages == []


def test_one_more_than_may_be_is_an_error(shards: Path) -> None:
    for sample in (4, 14, 24):
        flip_bit(shards, sample)
    with open_reader(shards, 2) as reader:
        read(reader, [4])
        read(reader, [14])
        read(reader, [4, 14])
        with pytest.raises(
            ShardSetError, match=r"member 000024.*that makes 3 damaged images, and 2 may be"
        ):
            read(reader, [24])


def test_a_split_without_a_good_image_is_an_error(shards: Path) -> None:
    for sample in range(NUM_SAMPLES):
        flip_bit(shards, sample)
    with open_reader(shards, NUM_SAMPLES) as reader:
        for _ in range(2):
            with pytest.raises(ShardSetError, match=r"every image of the split is damaged"):
                read(reader, list(range(NUM_SAMPLES)))


def test_a_file_cut_in_training_is_replaced_or_an_error(shards: Path) -> None:
    """What was read before it was cut, too."""
    with open_reader(shards, 1) as reader:
        _, before, _ = read(reader, [9, 10, 11])
        path = shards / "val-000001.tar"
        os.truncate(path, 0)
        _, labels, cost = read(reader, [9])
        assert labels == before[:1]
        assert cost.num_replaced == 0
        with pytest.raises(
            ShardSetError, match=r"val-000001\.tar.*makes 2 damaged images, and 1 may be"
        ):
            read(reader, [9, 10, 11])


@pytest.mark.slow
def test_every_image_is_checked_at_least_once(shards: Path) -> None:
    for sample in range(NUM_SAMPLES):
        flip_bit(shards, sample)
        with open_reader(shards, 0) as reader, pytest.raises(ShardSetError, match=r"CRC-32"):
            read(reader, [sample])
        flip_bit(shards, sample)
    with open_reader(shards, 0) as reader:
        read(reader, list(range(NUM_SAMPLES)))
