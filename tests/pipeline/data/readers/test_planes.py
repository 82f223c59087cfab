"""Encoding `yuv420`: every reader gives the same crops, made of planes where they are used."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.config.schema import Config
from pipeline.data.open import open_data, take_crops
from pipeline.ranks.mesh import build_mesh
from tests.data_prep.raw_data import run_cli
from tests.ffcv_process import FfcvProcess
from tests.pipeline.data.cache.flaky_server import serving
from tests.pipeline.worlds import SINGLE

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(crop_pixels=25, flip="random", normalize="none")
RESIZED = dataclasses.replace(AUGMENT, crop_pixels=24, crop_place="random_resized")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planes") / "shards"
    sizes = ("--num-train", 24, "--num-val", 10, "--size", 36, "--samples-per-shard", 10)
    done = run_cli("shard", "synthetic", *sizes, "--encoding", "yuv420", "--output", path)
    assert done.returncode == 0, done.stderr
    return path


def config_of(augment: AugmentConfig, shards: Path | str, **options: Any) -> Config:
    data = DataConfig(shards=str(shards), **options)
    return dataclasses.replace(cifar10(), augment=augment, data=data, global_batch_size=8)


def inputs(config: Config) -> npt.NDArray[np.float32]:
    """What the network gets in the first two epochs."""
    with contextlib.ExitStack() as resources:
        data = open_data(config, CPU, resources)
        augmenter, plan = data.augmenter(data.normalizer()), data.plan(1)
        mesh = build_mesh(SINGLE, "fused", 1)
        batches = resources.enter_context(
            data.open_batches(plan, SINGLE, mesh, lambda *_: {})(0, 6)
        )
        found = [
            augmenter(batch.images, batch.samples, step // 3, batch.crop_windows).numpy().copy()
            for step, batch in enumerate(batches)
        ]
    return np.concatenate(found)


@pytest.mark.slow
def test_a_resident_split_and_a_url_give_what_tars_give(shards: Path, tmp_path: Path) -> None:
    expected = inputs(config_of(AUGMENT, shards))
    assert expected.shape == (48, 3, 25, 25)
    np.testing.assert_array_equal(inputs(config_of(AUGMENT, shards, reader="resident")), expected)
    with serving(shards) as server:
        options = {"reader": "remote", "cache_dir": str(tmp_path / "cache")}
        found = inputs(config_of(AUGMENT, server.url, **options))
        np.testing.assert_array_equal(found, expected)
        resized = inputs(config_of(RESIZED, server.url, **options))
    np.testing.assert_array_equal(resized, inputs(config_of(RESIZED, shards)))


@pytest.mark.ffcv
@pytest.mark.slow
@pytest.mark.parametrize("augment", [AUGMENT, RESIZED], ids=["copied", "scaled"])
def test_a_beton_gives_what_tars_give(
    shards: Path, ffcv: FfcvProcess, tmp_path: Path, augment: AugmentConfig
) -> None:
    beton = ffcv.write_beton(shards, tmp_path / "out.beton")
    found = inputs(config_of(augment, shards, reader="beton", beton=str(beton)))
    np.testing.assert_array_equal(found, inputs(config_of(augment, shards)))


@pytest.mark.slow
def test_evaluation_sees_the_views_of_whole_images(shards: Path) -> None:
    config = config_of(AUGMENT, shards)
    with contextlib.ExitStack() as resources:
        data = open_data(config, CPU, resources)
        split = data.open_evaluation("val", 10, data.normalizer())
        blocks = resources.enter_context(split.open_blocks(build_mesh(SINGLE, "fused", 1)))
        batch = next(blocks)
        assert batch.images.shape[1:] == (54, 36)
        pixels = take_crops(batch.images, None)
        for view, of_pixels in zip(split.viewer(batch.images), split.viewer(pixels), strict=True):
            assert view.shape[1:] == (3, 25, 25)
            assert torch.equal(view, of_pixels)
