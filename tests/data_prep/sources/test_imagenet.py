"""The source `imagenet`: every layout gives the same samples and the same bytes."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import read_manifest
from data_prep.sources.imagenet_labels import SOLUTION_NAME
from tests.data_prep.convert.test_images import PICTURE, cmyk_jpeg, rotated_jpeg
from tests.data_prep.imagenet_archive import (
    DEVKIT_NAME,
    SAMPLE,
    TRAIN_NAME,
    ImageNet,
    make_imagenet,
    read_sample,
    val_name,
    write_archives,
)
from tests.data_prep.raw_data import (
    REPOSITORY,
    encode,
    hash_tree,
    jpeg,
    run_cli,
    start_held,
    wait_until_held,
)
from tests.data_prep.sources.imagenet_layouts import (
    DATA,
    contents,
    expected_contents,
    folder_of_inner_archives,
    kaggle,
    open_small,
    packed_by_others,
    unpacked,
    unpacked_with_devkit,
    unpacked_with_flat_val,
    write_ground_truth,
)
from tests.machine import DEADLINE_SECONDS

CLASSES = ("--num-classes", len(DATA.train))


needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is not there")


LAYOUTS = [
    lambda root: write_archives(root, DATA),
    unpacked,
    unpacked_with_flat_val,
    unpacked_with_devkit,
    folder_of_inner_archives,
    kaggle,
    packed_by_others,
]


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(root := tmp_path / "raw")
    source = open_small(root)
    assert source.class_names == tuple(sorted(DATA.train))
    assert contents(source) == expected_contents(DATA)


def test_archive_goes_before_the_folder_unpacked_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_archives(tmp_path, DATA)
    (tmp_path / "train").mkdir()
    with caplog.at_level(logging.WARNING):
        assert contents(open_small(tmp_path)) == expected_contents(DATA)
    assert (
        f"{tmp_path / 'train'} is left out: the split 'train' is read from {TRAIN_NAME}"
        in caplog.text
    )


def test_links_in_the_devkit_do_no_harm(tmp_path: Path) -> None:
    path = write_archives(tmp_path, DATA) / f"{DEVKIT_NAME}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(link)
        for name, content in DATA.devkit.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert contents(open_small(tmp_path)) == expected_contents(DATA)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_way(tmp_path: Path, ending: bytes) -> None:
    write_ground_truth(tmp_path / "devkit", DATA.ground_truth.replace(b"\n", ending))
    assert contents(open_small(tmp_path / "devkit")) == expected_contents(DATA)
    kaggle(root := tmp_path / "kaggle")
    table = (root / SOLUTION_NAME).read_bytes().replace(b"\n", ending)
    (root / SOLUTION_NAME).write_bytes(b"\xef\xbb\xbf" + table)  # as spreadsheets save it
    assert contents(open_small(root)) == expected_contents(DATA)


@pytest.mark.slow
def test_longest_name_that_a_shard_can_hold(tmp_path: Path) -> None:
    key = f"n11111111_{'1' * 86}"
    unpacked(root := tmp_path / "raw")
    (root / f"train/n11111111/{key}.JPEG").write_bytes(jpeg())
    shard(root, tmp_path / "out")
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        assert f"{key}.jpg" in archive.getnames()


def shard(root: Path, output: Path, *options: object) -> dict[str, str]:
    result = run_cli("shard", "imagenet", "--input", root, "--output", output, *CLASSES, *options)
    assert result.returncode == 0, result.stderr
    return hash_tree(output)


@pytest.mark.slow
def test_archives_and_trees_give_the_same_bytes(tmp_path: Path) -> None:
    write_archives(tmp_path / "packed", DATA)
    unpacked(tmp_path / "unpacked")
    options = ("--samples-per-shard", 7)
    packed = shard(tmp_path / "packed", tmp_path / "1", *options)
    assert packed == shard(tmp_path / "unpacked", tmp_path / "2", *options)
    assert read_manifest(tmp_path / "1").class_names == tuple(sorted(DATA.train))


@pytest.mark.slow
def test_only_files_that_are_no_plain_jpegs_are_rewritten(tmp_path: Path) -> None:
    first = min(DATA.train)
    odd = {
        f"{first}_1.JPEG": cmyk_jpeg(),
        f"{first}_8.JPEG": encode(PICTURE, "PNG"),
        f"{first}_15.JPEG": encode(PICTURE.convert("L"), "JPEG"),
        f"{first}_22.JPEG": rotated_jpeg(6),
    }
    data = replace(DATA, train={**DATA.train, first: {**DATA.train[first], **odd}})
    shard(write_archives(tmp_path / "raw", data), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.rewritten == {"cmyk": 1, "not_jpeg": 1, "rotated": 1}
    assert manifest.rejected == {}
    originals = {key: content for (_, key), (_, content) in expected_contents(data).items()}
    changed = []
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive.getmembers()[::2]:
                file = archive.extractfile(member)
                assert file is not None
                key = member.name.removesuffix(".jpg")
                if file.read() != originals[key]:
                    changed.append(key)
    assert sorted(changed) == [f"{first}_1", f"{first}_22", f"{first}_8"]


@pytest.mark.slow
def test_raw_pixels_are_256_squares_unless_told_otherwise(tmp_path: Path) -> None:
    root = write_archives(tmp_path / "raw", DATA)
    shard(root, tmp_path / "256", "--encoding", "rgb")
    manifest = read_manifest(tmp_path / "256")
    assert (manifest.image_height, manifest.image_width) == (256, 256)
    assert manifest.options["size"] == 256
    shard(root, tmp_path / "24", "--encoding", "rgb", "--size", 24)
    assert read_manifest(tmp_path / "24").image_height == 24


@pytest.mark.slow
def test_jpeg_quality_decides_the_bytes(tmp_path: Path) -> None:
    root = write_archives(tmp_path / "raw", DATA)
    num_bytes = []
    for quality in (30, 95):
        output = tmp_path / str(quality)
        shard(root, output, "--size", 40, "--jpeg-quality", quality)
        manifest = read_manifest(output)
        assert manifest.options["jpeg_quality"] == quality
        num_bytes.append(sum(manifest.split("train").shard_bytes))
    assert num_bytes[0] < num_bytes[1]
    again = run_cli(
        "shard", "imagenet", "--input", root, "--output", output, *CLASSES, "--size", 40,
        "--jpeg-quality", 94,
    )  # fmt: skip
    assert "jpeg_quality was 95 and is 94" in again.stderr
    rgb = run_cli(
        "shard", "imagenet", "--input", root, "--output", tmp_path / "rgb", *CLASSES,
        "--encoding", "rgb", "--jpeg-quality", 94,
    )  # fmt: skip
    assert "--jpeg-quality has no effect with --encoding rgb" in rgb.stderr


def test_wrong_number_of_classes_is_one_sentence(tmp_path: Path) -> None:
    root = write_archives(tmp_path / "raw", DATA)
    result = run_cli("shard", "imagenet", "--input", root, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert "train.tar has 4 classes; expected 1000 (--num-classes)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_kill_in_the_middle_of_the_outer_archive(tmp_path: Path) -> None:
    data = make_imagenet(num_train=60, num_val=40)
    root = write_archives(tmp_path / "raw", data)
    options = ("--size", 200, "--samples-per-shard", 10)
    whole = shard(root, tmp_path / "whole", *options)
    output = tmp_path / "out"
    command = ("shard", "imagenet", "--input", root, "--output", output, *CLASSES, *options)
    job = start_held(tmp_path / "held", 4, *command, "--workers", 1, num_samples=5)
    wait_until_held(tmp_path / "held")
    job.kill()
    job.communicate(timeout=DEADLINE_SECONDS)
    assert job.returncode == -signal.SIGKILL
    written = (output / "train-000000.tar").stat().st_mtime_ns
    assert shard(root, output, *options) == whole
    assert (output / "train-000000.tar").stat().st_mtime_ns == written


PEAK_MEMORY = """
import resource, sys
from pathlib import Path
from data_prep.__main__ import main
code = main(sys.argv[1:])
own = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(code, max(int(own), workers))
"""


def peak_memory(*arguments: object) -> int:
    """The most memory that any process of the command ever had, in KiB."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    code, peak = result.stdout.split("\n")[-2].split()
    assert code == "0", result.stderr
    return int(peak)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks, content = [], jpeg(height=8, width=8)
    for num_train in (250, 5000):
        train = {
            wnid: {f"{wnid}_{number}.JPEG": content for number in range(num_train)}
            for wnid in DATA.train
        }
        root = write_archives(tmp_path / f"{num_train}", replace(DATA, train=train))
        command = ("shard", "imagenet", "--input", root, "--output", tmp_path / f"{num_train}-out")
        options = (*CLASSES, "--samples-per-shard", 250, "--workers", 2)
        peaks.append(peak_memory(*command, *options))
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.slow
@needs_sample
def test_thousand_real_classes(tmp_path: Path) -> None:
    images = read_sample()
    wnids = sorted(images)
    order = random.Random(0).sample(wnids, len(wnids))
    val = {val_name(row): images[wnid] for row, wnid in enumerate(order[:50], 1)}
    train = {wnid: {f"{wnid}_1.JPEG": images[wnid]} for wnid in wnids}
    data = ImageNet(train, val, order[:50], random.Random(1).sample(wnids, len(wnids)))
    root, output = write_archives(tmp_path / "raw", data), tmp_path / "out"
    result = run_cli("shard", "imagenet", "--input", root, "--output", output)
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(output)
    assert manifest.class_names == tuple(wnids)
    assert manifest.rejected == {}
    rows = read_index(output, manifest.split("train"))
    assert np.array_equal(np.sort(rows["label"]), np.arange(1000))
    num_changed = 0
    for row in rows:
        path = output / manifest.split("train").filenames[row["shard"]]
        with path.open("rb") as file:
            content = os.pread(file.fileno(), int(row["num_bytes"]), int(row["offset"]))
        num_changed += content != images[wnids[row["label"]]]
    assert manifest.rewritten == {"rotated": num_changed} == {"rotated": 1}
