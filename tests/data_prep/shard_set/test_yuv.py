"""Encoding `yuv420`: what it keeps, how it is cut, and what is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import read_manifest
from data_prep.shard_set.pixels import Window, scale_window
from data_prep.shard_set.yuv import cut_yuv, decode_yuv, encode_yuv, size_of_yuv
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.open import open_data
from tests.data_prep.raw_data import make_pixels, run_cli, write_folder

HEIGHT, WIDTH = 40, 60
CONTENT = encode_yuv(make_pixels(1, HEIGHT, WIDTH), None)


def planes_of(content: bytes) -> npt.NDArray[np.uint8]:
    planes: npt.NDArray[np.uint8] = np.load(io.BytesIO(content))
    return planes


def reference(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """RGB of I420 in float64, by the equations of ITU-T T.871, not rounded."""
    height, width = 2 * len(planes) // 3, planes.shape[1]
    y = planes[:height].astype(np.float64)
    chroma = planes[height:].reshape(2, height // 2, width // 2).astype(np.float64) - 128
    cb, cr = (plane.repeat(2, 0).repeat(2, 1) for plane in chroma)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.clip(rgb, 0, 255)


@pytest.mark.parametrize("seed", range(5))
def test_colours_are_within_a_level_of_the_equations(seed: int) -> None:
    planes = np.random.default_rng(seed).integers(0, 256, (3 * HEIGHT // 2, WIDTH), np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, planes)
    found = decode_yuv(buffer.getvalue())
    assert np.abs(found - reference(planes)).max() <= 1


def test_planes_are_those_of_the_equations_and_half_the_bytes_of_rgb() -> None:
    pixels = make_pixels(2, HEIGHT, WIDTH)
    planes = planes_of(encode_yuv(pixels, None))
    assert planes.nbytes == pixels.nbytes / 2
    red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs(planes[:HEIGHT] - luma).max() <= 1
    for plane, other, scale in ((0, blue, 1.772), (1, red, 1.402)):
        full = (other - luma) / scale + 128
        halved = full.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3))
        chroma = planes[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)[plane]
        assert np.abs(chroma - halved).max() <= 1


@given(
    top=st.integers(0, HEIGHT - 1),
    left=st.integers(0, WIDTH - 1),
    height=st.integers(1, HEIGHT),
    width=st.integers(1, WIDTH),
    is_scaled=st.booleans(),
)
def test_a_crop_is_that_of_the_whole_image(
    top: int, left: int, height: int, width: int, is_scaled: bool
) -> None:
    window = Window(top, left, min(height, HEIGHT - top), min(width, WIDTH - left))
    size = (16, 16) if is_scaled else window[2:]
    out, expected = (np.empty((1, *size, 3), np.uint8) for _ in range(2))
    assert cut_yuv([CONTENT], np.array([window], np.int32), out) is None
    scale_window(decode_yuv(CONTENT), window, expected[0])
    np.testing.assert_array_equal(out, expected)


def saved(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT[:-1],
        CONTENT + b"\0",
        saved(np.zeros((4, 6), np.uint8)),
        saved(np.zeros((6, 5), np.uint8)),
        saved(np.zeros((6, 4), np.uint16)),
        saved(np.zeros((0, 4), np.uint8)),
        saved(np.zeros((6, 4, 3), np.uint8)),
    ],
)
def test_damage_is_refused(content: bytes) -> None:
    out = np.empty((1, 2, 2, 3), np.uint8)
    for read in (size_of_yuv, decode_yuv):
        with pytest.raises(ValueError, match="even height and width"):
            read(content)
    failure = cut_yuv([content], np.array([[0, 0, 2, 2]], np.int32), out)
    assert failure is not None
    assert failure[0] == 0


def test_a_window_outside_is_refused() -> None:
    out = np.empty((1, 4, 4, 3), np.uint8)
    assert cut_yuv([CONTENT], np.array([[HEIGHT - 2, 0, 4, 4]], np.int32), out) is not None


@pytest.mark.slow
def test_a_shard_set_of_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "raw")
    command = ("shard", "folder", "--input", root, "--encoding", "yuv420", "--output")
    done = run_cli(*command, tmp_path / "shards", "--size", 32)
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "shards").image_size == (32, 32)
    assert run_cli("verify", tmp_path / "shards", "--full").returncode == 0
    odd = run_cli(*command, tmp_path / "odd", "--size", 31)
    assert odd.returncode == 1
    assert "--encoding yuv420: the image is 31×31; expected even sides" in odd.stderr


def test_training_reads_crops_of_what_is_stored_and_knows_its_colours(tmp_path: Path) -> None:
    root, shards = write_folder(tmp_path / "raw"), tmp_path / "shards"
    options = ("--size", 32, "--encoding", "yuv420", "--output", shards)
    assert run_cli("shard", "folder", "--input", root, *options).returncode == 0
    manifest, index = read_manifest(shards), np.load(shards / "train.index.npy")
    tar = (shards / "train-000000.tar").read_bytes()
    wholes = [
        codec_of("yuv420").decode(tar[row["offset"] : row["offset"] + row["num_bytes"]])
        for row in index
    ]
    mean = np.mean(wholes, (0, 1, 2))
    np.testing.assert_allclose(manifest.statistics.mean, mean, rtol=1e-9)
    augment = AugmentConfig(crop_pixels=25, normalize="none")
    config = dataclasses.replace(
        cifar10(), augment=augment, data=DataConfig(shards=str(shards)), global_batch_size=8
    )
    with contextlib.ExitStack() as resources:
        data = open_data(config, torch.device("cpu"), resources)
        loader = resources.enter_context(data.open_files(data.plan(1), 0)(0, 1))
        (batch,) = list(loader)
        samples, sides = np.asarray(batch.samples), np.full(8, 32)
        policy = training_crop_policy(augment, (32, 32), config.seed)
        windows = policy.boxes(samples, 0, sides, sides).as_rows().tolist()
        for row, (top, left, height, width) in enumerate(windows):
            expected = wholes[samples[row]][top : top + height, left : left + width]
            np.testing.assert_array_equal(np.asarray(batch.images[row]), expected)
