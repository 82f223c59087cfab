"""Adopted tars with images of all kinds: each is read as a conversion would have stored it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data_prep.shard_set.codec import codec_of, plain_jpeg_size
from data_prep.shard_set.decoding import read_image, size_in_header
from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import read_manifest
from data_prep.shard_set.pixels import Pixels, Window, scale_window
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.open import open_data
from tests.data_prep.raw_data import encode, jpeg, make_pixels, run_cli

SIDE = 48


def turned(orientation: int) -> bytes:
    image = Image.fromarray(make_pixels(3, SIDE, 60))
    exif = Image.Exif()
    exif[274] = orientation
    return encode(image, "JPEG", exif=exif, quality=95)


EXIF = Image.Exif()
EXIF[274] = 6
IMAGES = {
    "plain": jpeg(1, SIDE, 60),
    "gray": encode(Image.fromarray(make_pixels(2, SIDE, 60)).convert("L"), "JPEG"),
    "cmyk": encode(Image.fromarray(make_pixels(2, SIDE, 60)).convert("CMYK"), "JPEG"),
    "turned": turned(6),
    "upside down": turned(3),
    "upright": turned(1),
    "png": encode(Image.fromarray(make_pixels(4, SIDE, 60)), "PNG"),
    "clear": encode(Image.fromarray(make_pixels(4, SIDE, 60)).convert("RGBA"), "PNG"),
    "turned png": encode(Image.fromarray(make_pixels(4, SIDE, 60)), "PNG", exif=EXIF),
    "turned webp": encode(Image.fromarray(make_pixels(5, SIDE, 60)), "WEBP", exif=EXIF),
    "webp": encode(Image.fromarray(make_pixels(5, SIDE, 60)), "WEBP"),
}
PLAIN = ("plain", "gray", "upright")


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_decoded_as_it_is_and_what_by_the_rules_of_a_conversion(name: str) -> None:
    content = IMAGES[name]
    expected = read_image(content)[0]
    codec = codec_of("image")
    assert (plain_jpeg_size(content) is not None) == (name in PLAIN)
    assert codec.size_of(content) == size_in_header(content) == expected.shape[:2]
    np.testing.assert_array_equal(codec.decode(content), expected)


def cut(content: bytes, window: tuple[int, int, int, int], size: int) -> Pixels:
    out = np.empty((1, size, size, 3), np.uint8)
    assert codec_of("image").cut([content], np.array([window], np.int32), out) is None
    return np.asarray(out[0])


@pytest.mark.parametrize("name", IMAGES)
def test_crops_of_all_kinds_are_those_of_the_whole_image(name: str) -> None:
    whole = codec_of("image").decode(IMAGES[name])
    np.testing.assert_array_equal(cut(IMAGES[name], (7, 5, 32, 32), 32), whole[7:39, 5:37])


def test_damage_is_named_by_its_row() -> None:
    contents = [IMAGES["png"], IMAGES["plain"], IMAGES["png"][:200]]
    out = np.empty((3, 8, 8, 3), np.uint8)
    windows = np.tile(np.array([0, 0, 8, 8], np.int32), (3, 1))
    failure = codec_of("image").cut(contents, windows, out)
    assert failure is not None
    assert failure[0] == 2


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """All kinds, adopted; the tars tell them by nothing but the ends of their names."""
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"tars/{split}.tar")) as writer:
            for number, (name, content) in enumerate(IMAGES.items()):
                suffix = {"png": "png", "clear": "PNG", "webp": "image.webp"}.get(name, "jpg")
                writer.write({"__key__": f"{number}", suffix: content, "cls": number % 2})
    done = run_cli("adopt", tmp_path / "tars", "--output", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    return tmp_path / "shards"


def test_training_reads_them_all(shards: Path) -> None:
    assert read_manifest(shards).encoding == "image"
    augment = AugmentConfig(crop_pixels=32, crop_place="random_resized", normalize="none")
    config = dataclasses.replace(
        cifar10(),
        augment=augment,
        data=DataConfig(shards=str(shards)),
        global_batch_size=len(IMAGES),
    )
    with contextlib.ExitStack() as resources:
        data = open_data(config, torch.device("cpu"), resources)
        loader = resources.enter_context(data.open_files(data.plan(1), 0)(0, 1))
        (batch,) = list(loader)
        contents, samples = list(IMAGES.values()), np.asarray(batch.samples)
        wholes = [read_image(contents[sample])[0] for sample in samples.tolist()]
        heights, widths = np.array([whole.shape[:2] for whole in wholes]).T
        policy = training_crop_policy(augment, None, config.seed)
        windows = policy.boxes(samples, 0, heights, widths).as_rows().tolist()
        assert len(windows) == len(IMAGES)
        for row, (whole, window) in enumerate(zip(wholes, windows, strict=True)):
            expected = np.empty((32, 32, 3), np.uint8)
            scale_window(whole, Window(*window), expected)
            np.testing.assert_array_equal(np.asarray(batch.images[row]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_images_of_one_size_are_known_to_have_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"tars/{split}.tar")) as writer:
            for number in range(2):
                content = encode(Image.fromarray(make_pixels(number, 48, 60)), kind)
                writer.write({"__key__": f"{number}", kind.lower(): content, "cls": number})
    done = run_cli("adopt", tmp_path / "tars", "--output", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "shards").image_size == (48, 60)
    assert run_cli("verify", tmp_path / "shards", "--full").returncode == 0


@pytest.mark.slow
def test_they_are_verified_and_looked_at(shards: Path) -> None:
    assert run_cli("verify", shards, "--full").returncode == 0
    done = run_cli("look", shards)
    assert "JPEG CMYK 2" in done.stdout
    assert "PNG RGBA 2" in done.stdout


@pytest.mark.slow
def test_what_cannot_be_decoded_is_found_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(tmp_path / f"tars/{split}.tar")) as writer:
            contents = [IMAGES["plain"], b"no image", IMAGES["png"]]
            for number, content in enumerate(contents):
                writer.write({"__key__": f"{number}", "jpg": content, "cls": 0})
    shards = tmp_path / "shards"
    assert run_cli("adopt", tmp_path / "tars", "--output", shards).returncode == 0
    done = run_cli("verify", shards, "--full")
    assert done.returncode == 1
    assert "train.tar: key 1: its image does not decode: not_an_image" in done.stdout
    index = read_index(shards, read_manifest(shards).split("train"))
    assert len(index) == 3
