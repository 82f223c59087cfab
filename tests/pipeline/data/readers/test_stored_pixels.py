"""Crops copied out of mapped files are those that are read and checked one by one."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.shard_set.manifest import Encoding
from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import LocalFiles, SampleIndex
from pipeline.data.readers.stored_pixels import PixelReader
from tests.data_prep.raw_data import make_pixels

NUM_SAMPLES, SIZE = 8, (64, 64)
BOTH = pytest.mark.parametrize("encoding", ["rgb", "yuv420"])


def write_index(path: Path, encoding: Encoding, *, has_headers: bool) -> SampleIndex:
    """One file of images, with or without their headers, as in a tar or a `.beton`."""
    codec = codec_of(encoding)
    header = codec.header(SIZE)
    contents = [codec.encode(make_pixels(seed, *SIZE), None) for seed in range(NUM_SAMPLES)]
    skipped = 0 if has_headers else len(header)
    rows = np.zeros(NUM_SAMPLES, INDEX_DTYPE)
    rows["num_bytes"] = [len(content) - skipped for content in contents]
    rows["offset"] = np.cumsum(rows["num_bytes"]) - rows["num_bytes"]
    rows["label"] = range(NUM_SAMPLES)
    path.write_bytes(b"".join(content[skipped:] for content in contents))
    return SampleIndex(
        encoding=encoding,
        image_size=SIZE,
        rows=rows,
        checksums=np.array([zlib.crc32(content) for content in contents], np.uint32),
        prefix=header[:skipped],
        files=LocalFiles([path]),
        paths=[path],
        are_tars=False,
        remedy="copy it again",
    )


@contextlib.contextmanager
def opened(
    kind: type[FileReader], path: Path, encoding: Encoding, side: int, *, has_headers: bool
) -> Iterator[FileReader]:
    index = write_index(path, encoding, has_headers=has_headers)
    policy = CropPolicy(place="random", output_size=(side, side), seed=3)
    with contextlib.closing(kind(index, policy, NUM_SAMPLES - 1, 2)) as reader:
        yield reader


Read = tuple[npt.NDArray[np.uint8], list[int], list[list[int]] | None]


def read(reader: FileReader, samples: list[int], epoch: int) -> Read:
    """Images, labels, and where in the images the crops are."""
    images = np.zeros((len(samples), *reader.image_shape), np.uint8)
    labels, _, crops = reader.read(np.array(samples), epoch, images)
    places = None if crops is None else [crops.tops.tolist(), crops.lefts.tolist()]
    return images, labels.tolist(), places


@BOTH
@pytest.mark.parametrize("has_headers", [True, False])
@pytest.mark.parametrize("side", [1, 31, 62, 63, 64])
def test_copied_crops_are_those_of_the_files(
    tmp_path: Path, encoding: Encoding, has_headers: bool, side: int
) -> None:
    path, samples = tmp_path / "images", [5, 0, 7, 3, 5]
    with (
        opened(PixelReader, path, encoding, side, has_headers=has_headers) as copying,
        opened(FileReader, path, encoding, side, has_headers=has_headers) as reading,
    ):
        for epoch in range(4):
            found, expected = read(copying, samples, epoch), read(reading, samples, epoch)
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1:] == (samples, expected[2])


@BOTH
def test_what_stands_in_for_an_image_of_a_cut_file_brings_its_own_crop(
    tmp_path: Path, encoding: Encoding
) -> None:
    path, samples = tmp_path / "images", [1, 6, 0, 3]
    with (
        opened(PixelReader, path, encoding, 31, has_headers=False) as copying,
        opened(FileReader, path, encoding, 31, has_headers=False) as reading,
    ):
        assert read(copying, samples, 0)[1] == samples
        os.truncate(path, path.stat().st_size // 4)  # at a page
        for epoch in range(3):
            found, expected = read(copying, samples, epoch), read(reading, samples, epoch)
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1:] == expected[1:]
            assert found[1] == [1, 0, 0, 0]


@BOTH
def test_large_batches_are_written_past_the_caches_with_the_same_bytes(
    tmp_path: Path, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, samples = tmp_path / "images", [5, 0, 7, 3, 5]
    with opened(PixelReader, path, encoding, 63, has_headers=True) as reader:
        expected = read(reader, samples, 1)
        monkeypatch.setattr("pipeline.data.readers.stored_pixels._CACHED_BYTES", 0)
        found = read(reader, samples, 1)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:] == expected[1:]
