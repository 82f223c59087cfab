"""Shard sets and `.beton` files: they still open, and the same command gives the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ffcv_process import FfcvProcess
from tests.formats.fixtures import (
    BETONS,
    CONVERSIONS,
    HALVES,
    contents,
    copy_images,
    libraries,
    run_module,
    shard,
    shard_in_halves,
    unpack_beton,
)

each_conversion = pytest.mark.parametrize("name", CONVERSIONS)


def check_same_bytes(version: Path, found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Fail with the files that differ, and the libraries by which they may."""
    assert expected
    names = [name for name in found | expected if found.get(name) != expected.get(name)]
    then = (version / "libraries.json").read_text()
    assert names == [], (
        f"these files have other bytes than in {version}, which was made with\n{then}"
        f"and this is {libraries()}"
    )


@each_conversion
def test_a_shard_set_is_whole(version: Path, name: str) -> None:
    output = run_module("data_prep", "verify", version / "shards" / name, "--full").stdout
    assert output.endswith("no damage found (every byte)\n")


@pytest.mark.slow
@each_conversion
def test_a_conversion_gives_the_same_bytes(version: Path, name: str, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    shard(copy_images(version, tmp_path / "images"), output, CONVERSIONS[name])
    check_same_bytes(version, contents(output), contents(version / "shards" / name))


@pytest.mark.slow
def test_a_conversion_that_was_begun_is_finished(version: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(version / "begun", begun)
    kept = {path: path.stat().st_mtime_ns for path in begun.glob("*.tar")}
    assert kept
    shard_in_halves(version / "images", begun, 1)
    run_module("data_prep", "merge", begun)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    check_same_bytes(version, contents(begun), contents(version / "shards" / HALVES))


def test_a_finished_conversion_knows_its_images(version: Path, tmp_path: Path) -> None:
    images, output = copy_images(version, tmp_path / "images"), tmp_path / "sizes"
    shutil.copytree(version / "shards/sizes", output)
    shutil.copy(version / "shards/sizes.inputs.npz", tmp_path)
    (answer, complaint) = _shard_again(images, output)
    assert "(complete already)" in answer
    assert complaint == ""
    (images / "train/cat/0000.jpg").touch()
    with pytest.raises(AssertionError, match=r"replaced since \(train/cat/0000\.jpg\)"):
        _shard_again(images, output)


def _shard_again(images: Path, output: Path) -> tuple[str, str]:
    words = (*CONVERSIONS["sizes"], "--input", images, "--output", output)
    done = run_module("data_prep", "shard", *words)
    return done.stdout, done.stderr


@pytest.mark.parametrize("name", BETONS)
def test_a_beton_is_known_as_that_of_its_shard_set(
    version: Path, name: str, tmp_path: Path
) -> None:
    path = unpack_beton(version, name, tmp_path)
    output = run_module("data_prep", "beton", version / "shards" / name, path).stdout
    assert output.endswith("bytes (complete already)\n")


@pytest.mark.ffcv
@pytest.mark.slow
def test_a_beton_is_written_with_the_same_bytes(
    version: Path, ffcv: FfcvProcess, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    name = BETONS[0]
    path = ffcv.write_beton(version / "shards" / name, tmp_path / "new.beton")
    assert path.read_bytes() == unpack_beton(version, name, tmp_path / "kept").read_bytes()
