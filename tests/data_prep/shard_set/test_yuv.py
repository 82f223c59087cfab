"""Encoding `yuv420`: what it keeps, how it is cut, and what is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import read_manifest
from data_prep.shard_set.pixels import Window, scale_window
from data_prep.shard_set.yuv import cut_yuv, decode_yuv, encode_yuv, size_of_yuv
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.data.augment.crop_policy import CropBoxes, CropPolicy, training_crop_policy
from pipeline.data.augment.crops import CropWindows, take_crops
from pipeline.data.augment.planes import cut_size, cut_windows, to_rgb
from pipeline.data.open import open_data
from tests.data_prep.raw_data import make_pixels, run_cli, write_folder

HEIGHT, WIDTH = 40, 60
BOX = ("tops", "lefts", "heights", "widths")
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


def saved(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("seed", range(5))
def test_colours_are_within_a_level_of_the_equations(seed: int) -> None:
    planes = np.random.default_rng(seed).integers(0, 256, (3 * HEIGHT // 2, WIDTH), np.uint8)
    found = decode_yuv(saved(planes))
    assert np.abs(found - reference(planes)).max() <= 1
    on_device = to_rgb(torch.from_numpy(planes)[None])[0]
    np.testing.assert_array_equal(on_device, found)


def test_colours_are_those_of_libjpeg() -> None:
    """Squares of one colour each: at quality 100 a JPEG keeps their values exactly."""
    squares = 64
    y, cb, cr = np.random.default_rng(3).integers(0, 256, (3, squares, squares), np.uint8)
    size = 16 * squares
    planes = [plane.repeat(step, 0).repeat(step, 1) for plane, step in ((y, 16), (cb, 8), (cr, 8))]
    content = simplejpeg.encode_jpeg_yuv_planes(*planes, quality=100)
    joined = np.concatenate([plane.ravel() for plane in planes]).reshape(3 * size // 2, size)
    expected = simplejpeg.decode_jpeg(content)
    # In the middle of a square the neighbours' chroma is not mixed in.
    np.testing.assert_array_equal(decode_yuv(saved(joined))[8::16, 8::16], expected[8::16, 8::16])


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


@given(place=st.tuples(*[st.integers(0, 100)] * 4), is_flipped=st.booleans())
def test_a_crop_on_the_device_is_that_of_the_whole_image(
    place: tuple[int, int, int, int], is_flipped: bool
) -> None:
    height, width = place[0] % HEIGHT + 1, place[1] % WIDTH + 1
    top, left = place[2] % (HEIGHT - height + 1), place[3] % (WIDTH - width + 1)
    policy = CropPolicy(place="random", output_size=(height, width))
    box = CropBoxes(**dict(zip(BOX, np.array([[top], [left], [height], [width]]), strict=True)))
    (window,) = cut_windows(policy, box, (HEIGHT, WIDTH))
    planes = np.empty((1, 3 * window[2] // 2, window[3]), np.uint8)
    assert cut_yuv([CONTENT], window[None], planes) is None
    place_in = np.array([0]), np.array([top - window[0]]), np.array([left - window[1]])
    crop = CropWindows(**dict(zip(("rows", *BOX[:2]), place_in, strict=True)), size=(height, width))
    found = take_crops(torch.from_numpy(planes), crop, np.array([is_flipped]))[0]
    expected = decode_yuv(CONTENT)[top : top + height, left : left + width]
    np.testing.assert_array_equal(found, expected[:, ::-1] if is_flipped else expected)


def test_scaled_planes_are_those_of_pillow_and_near_the_scaled_image() -> None:
    few = Image.fromarray(make_pixels(3, 3, 4) // 2 + 64)
    smooth = np.asarray(few.resize((WIDTH, HEIGHT)))
    content, window = encode_yuv(smooth, None), Window(3, 5, 31, 44)
    planes, expected = np.empty((1, 3 * 8, 20), np.uint8), np.empty((16, 20, 3), np.uint8)
    assert cut_yuv([content], np.array([window], np.int32), planes) is None
    scale_window(decode_yuv(content), window, expected)
    found = take_crops(torch.from_numpy(planes), None)[0].numpy()
    difference = found.astype(int) - expected
    assert np.abs(difference).mean() < 3, "chroma is that of two by two pixels"
    assert np.abs(difference.mean((0, 1))).max() < 0.5


def test_scaled_crops_have_even_sizes() -> None:
    policy = CropPolicy(place="random_resized", output_size=(24, 24))
    assert cut_size(policy, (HEIGHT, WIDTH)) == (24, 24)
    with pytest.raises(ValueError, match="crop_pixels is 25; expected an even number"):
        cut_size(dataclasses.replace(policy, output_size=(25, 25)), (HEIGHT, WIDTH))


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
    out = np.empty((1, 3, 2), np.uint8)
    for read in (size_of_yuv, decode_yuv):
        with pytest.raises(ValueError, match="even height and width"):
            read(content)
    failure = cut_yuv([content], np.array([[0, 0, 2, 2]], np.int32), out)
    assert failure is not None
    assert failure[0] == 0


def test_a_window_outside_is_refused() -> None:
    out = np.empty((1, 6, 4), np.uint8)
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
    expected = (
        r"error: \S*(train|val)\S*: --encoding yuv420: the image is 31×31; expected even sides"
    )
    assert re.search(expected, odd.stderr)


@pytest.mark.slow
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
        assert batch.images.shape == (8, 3 * 26 // 2, 26)
        crops = take_crops(batch.images, batch.crop_windows)
        samples, sides = np.asarray(batch.samples), np.full(8, 32)
        policy = training_crop_policy(augment, (32, 32), config.seed)
        windows = policy.boxes(samples, 0, sides, sides).as_rows().tolist()
        for row, (top, left, height, width) in enumerate(windows):
            expected = wholes[samples[row]][top : top + height, left : left + width]
            np.testing.assert_array_equal(crops[row], expected)
