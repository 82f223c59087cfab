"""The choice of a reader: the rule, and the command that measures and chooses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.benchmark.choice import Measurement, choose, table
from pipeline.benchmark.measure import fitting_recipe
from pipeline.config.data import ReaderName
from pipeline.data.augment.crop_policy import ImageSize
from tests.data_prep.raw_data import REPOSITORY, run_cli
from tests.pipeline.data.cache.flaky_server import serving


def measured(reader: ReaderName, num_threads: int, rate: float) -> Measurement:
    return Measurement(
        reader=reader,
        num_threads=num_threads,
        images_per_second=rate,
        cores=1.5,
        private_bytes=12_345_678,
    )


ALL = [
    measured("tar", 1, 900),
    measured("tar", 4, 3000),
    measured("beton", 1, 950),
    measured("beton", 4, 3500),
    measured("resident", 4, 90_000),
]


@pytest.mark.parametrize(
    ("step_rate", "num_devices", "reader", "threads"),
    [
        (100, 1, "tar", 1),
        (900, 1, "tar", 1),
        (901, 1, "tar", 4),
        (450, 4, "tar", 4),
        (3001, 1, "beton", 4),
        (1000, 8, "resident", 4),
    ],
)
def test_the_simplest_that_feeds_all_devices_is_chosen(
    step_rate: float, num_devices: int, reader: str, threads: int
) -> None:
    for measurements in (ALL, ALL[::-1]):
        sentence = choose(measurements, step_rate, num_devices)
        assert sentence.startswith(
            f"choose --data.reader {reader} --data.decode_threads {threads}: "
        )


def test_if_none_feeds_them_the_fastest_is_named() -> None:
    sentence = choose(ALL[:4], 10_000, 2)
    assert sentence.startswith("none feeds all 2 devices of this host (20,000 images a second)")
    assert "the fastest is --data.reader beton --data.decode_threads 4, with 3,500" in sentence


def test_the_table_says_how_many_devices_each_would_feed() -> None:
    assert table(ALL[::4], 3000, "GPU").splitlines() == [
        "reader    threads  images/s  cores  memory, MB  devices fed (GPU)",
        "tar             1       900   1.50          12                0.3",
        "resident        4    90,000   1.50          12               30.0",
    ]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.data.benchmark", *map(str, arguments)]
    options = ("--seconds", "0.2")
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choice") / "shards"
    options = ("--num-train", 300, "--num-val", 4, "--samples-per-shard", 100)
    assert run_cli("shard", "synthetic", "--output", path, *options).returncode == 0
    return path


@pytest.mark.slow
def test_readers_are_measured_and_one_is_chosen(shards: Path) -> None:
    done = call(shards)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("training takes ")
    assert re.search(r" images a second \(this CPU, (bf16|fp32)\), cifar10\Z", lines[0])
    assert lines[1].startswith("beton is left out: no --beton FILE")
    readers = [line.split()[0] for line in lines[2:-1]]
    assert readers[:2] == ["reader", "tar"]
    assert readers[-1] == "resident"
    assert lines[-1].startswith(("choose --data.reader ", "none feeds the device"))


@pytest.mark.parametrize(
    ("size", "recipe"),
    [
        ((32, 32), "cifar10"),
        ((224, 224), "alexnet_2012"),
        ((227, 300), "alexnet_2012"),
        (None, "alexnet_2012"),
    ],
)
def test_the_recipe_is_one_that_takes_the_images(size: ImageSize | None, recipe: str) -> None:
    assert fitting_recipe(size) == recipe


def test_images_that_no_recipe_takes_are_named() -> None:
    with pytest.raises(ValueError, match="no recipe trains on images of 64×64 as it is: convert"):
        fitting_recipe((64, 64))


@pytest.mark.slow
def test_shards_at_a_url_are_measured_through_the_cache(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as server:
        done = call(server.url, "--cache-dir", tmp_path, "--step-rate", 1e-6)
    assert done.returncode == 0, done.stderr
    assert "\nremote " in done.stdout
    assert "choose --data.reader remote --data.decode_threads 1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), f"error: {REPOSITORY}/nowhere is not a shard set"),
        (("nowhere", "--cache-dir", "c"), "error: --cache-dir has no effect: it needs data.shards"),
        (("http://h/x",), "error: SHARDS is the URL http://h/x without --cache-dir; expected a"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = call(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
