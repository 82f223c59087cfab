"""Raw images that are replaced under their names, half-way through a conversion or after it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.sources.cifar import open_cifar10
from tests.data_prep.cifar_archive import cifar10_files, dumps, make_batch, write_archive
from tests.data_prep.imagenet_archive import TRAIN_NAME, make_imagenet, write_archives
from tests.data_prep.raw_data import hash_tree, write_folder

ENOUGH = ("--samples-per-shard", 5, "--workers", 1)


def shard(source: str, raw: Path, output: Path, *options: object) -> int:
    words = ["shard", source, "--input", raw, "--output", output, *ENOUGH, *options]
    return main([str(word) for word in words])


def replace_image(path: Path) -> None:
    """By another of the same size, which `path` then has at another time."""
    content, written = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[15] ^= 1  # of the density
    path.write_bytes(content)
    os.utime(path, ns=(written + 1, written + 1))


@pytest.mark.slow
def test_an_image_that_is_replaced_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, output = write_folder(tmp_path / "raw"), tmp_path / "out"
    assert shard("folder", raw, output) == 0
    made = hash_tree(output)
    assert shard("folder", raw, output) == 0
    assert "complete already" in capsys.readouterr().out
    replace_image(raw / "train/dog/0001.jpg")
    for name in ("0000", "0001"):
        shutil.copy(raw / "val/cat/0000.jpg", raw / f"val/dog/{name}.jpg")
    assert shard("folder", raw, output) == 1
    assert capsys.readouterr().err == (
        f"error: images in finished shards of {output} were replaced since (train/dog/0001.jpg, "
        "val/dog/0000.jpg, val/dog/0001.jpg), 3 in all: put them back, give another "
        "--output or empty this one, or keep these shards as they are with --ignore-changes\n"
    )
    assert shard("folder", raw, output, "--ignore-changes") == 0
    assert "complete already" in capsys.readouterr().out
    assert hash_tree(output) == made


@pytest.mark.slow
def test_when_files_were_written_changes_nothing_that_is_published(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw")
    copy = tmp_path / "copy"
    shutil.copytree(raw, copy)  # keeps the times of files
    os.utime(copy / "train/cat/0000.jpg", (1, 1))
    assert shard("folder", raw, tmp_path / "1") == shard("folder", copy, tmp_path / "2") == 0
    assert hash_tree(tmp_path / "1") == hash_tree(tmp_path / "2")
    moved = (tmp_path / "2").rename(tmp_path / "3")  # and is not known there
    assert shard("folder", raw, moved) == 0
    (tmp_path / "1.inputs.npz").rename(tmp_path / "3.inputs.npz")
    (moved / "_info.json").write_bytes((moved / "_info.json").read_bytes() + b"\n")
    assert shard("folder", copy, moved) == 0  # those of another shard set count for nothing


@pytest.mark.slow
def test_a_conversion_does_not_mix_old_and_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor do its tasks, each of which looks at the shards of all."""
    raw, output = write_folder(tmp_path / "raw", 10, 5), tmp_path / "out"
    assert shard("folder", raw, output, "--num-tasks", 2, "--task", 0) == 0
    made = hash_tree(output)
    for path in raw.glob("*/*/*"):
        replace_image(path)
    capsys.readouterr()
    divisions: tuple[tuple[object, ...], ...] = (
        ("--num-tasks", 2, "--task", 0),
        ("--num-tasks", 2, "--task", 1),
        (),
    )
    for division in divisions:
        assert shard("folder", raw, output, *division) == 1
        errors = capsys.readouterr().err
        assert f"images in finished shards of {output} were replaced since" in errors
        assert ".jpg and 10 more), 15 in all: put them back" in errors
    assert {**hash_tree(output), **made} == hash_tree(output)
    assert shard("folder", raw, output, *divisions[1], "--ignore-changes") == 0
    assert main(["merge", str(output)]) == 0
    assert shard("folder", raw, output) == 1
    assert "15 in all" in capsys.readouterr().err


@pytest.mark.slow
def test_an_archive_that_is_replaced_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_imagenet()
    raw, output = write_archives(tmp_path / "raw", data), tmp_path / "out"
    classes = ("--num-classes", len(data.train))
    assert shard("imagenet", raw, output, *classes) == 0
    os.utime(raw / TRAIN_NAME, (1, 1))
    assert shard("imagenet", raw, output, *classes) == 1
    num_images = sum(map(len, data.train.values()))
    errors = capsys.readouterr().err
    assert f"images in finished shards of {output} were replaced since" in errors
    assert f"), {num_images} in all: " in errors
    assert f"({TRAIN_NAME}:" in errors


@pytest.mark.slow
def test_of_cifar_the_pixels_count_and_not_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, output = cifar10_files(), tmp_path / "out"
    raw = write_archive(tmp_path / "a.tar.gz", "cifar-10-batches-py", files)
    assert shard("cifar10", raw, output) == 0
    os.utime(raw, (1, 1))
    assert shard("cifar10", raw, output) == 0
    batch = make_batch(1, b"labels", 5)
    batch[b"data"][7] ^= 1
    write_archive(raw, "cifar-10-batches-py", {**files, "data_batch_2": dumps(batch)})
    assert open_cifar10(raw).splits["train"].count_labels(5) == [20] * 5
    assert shard("cifar10", raw, output) == 1
    errors = capsys.readouterr().err
    assert f"images in finished shards of {output} were replaced since (" in errors
    assert "), 1 in all: " in errors


@pytest.mark.slow
def test_what_is_made_from_nothing_has_nothing_to_replace(tmp_path: Path) -> None:
    words = ["shard", "synthetic", "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--num-train", "20", "--num-val", "10"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(SystemExit):
        main([*words, "--ignore-changes"])
