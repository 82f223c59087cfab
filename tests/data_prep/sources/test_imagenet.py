"""The source `imagenet`: every layout gives the same, and what contradicts itself is refused."""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import read_manifest
from data_prep.sources.imagenet import open_imagenet
from data_prep.sources.imagenet_labels import SOLUTION_NAME, read_devkit
from data_prep.sources.source import Source, SourceError
from tests.data_prep.convert.test_images import PICTURE, cmyk_jpeg, rotated_jpeg
from tests.data_prep.imagenet_archive import (
    DEVKIT_NAME,
    GROUND_TRUTH_NAME,
    SAMPLE,
    TRAIN_NAME,
    VAL_NAME,
    ImageNet,
    make_imagenet,
    make_meta,
    read_sample,
    tar,
    val_name,
    write_archives,
    write_files,
    write_train_tree,
    write_val_tree,
)
from tests.data_prep.raw_data import (
    REPOSITORY,
    encode,
    hash_tree,
    jpeg,
    run_cli,
    start_cli,
    wait_for_shards,
)

DATA = make_imagenet()
CLASSES = ("--num-classes", len(DATA.train))

needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is not there")


def open_small(root: Path) -> Source:
    return open_imagenet(root, num_classes=len(DATA.train))


def contents(source: Source) -> dict[tuple[str, str], tuple[int, object]]:
    """Label and image of every sample, by split and key."""
    return {
        (split, sample.key): (sample.label, source.reader.read(sample))
        for split, samples in source.splits.items()
        for sample in samples
    }


def expected_contents(data: ImageNet) -> dict[tuple[str, str], tuple[int, object]]:
    wnids = sorted(data.train)
    train = {
        ("train", name.removesuffix(".JPEG")): (wnids.index(wnid), content)
        for wnid, files in data.train.items()
        for name, content in files.items()
    }
    val = {
        ("val", name.removesuffix(".JPEG")): (wnids.index(wnid), content)
        for wnid, (name, content) in zip(data.val_wnids, data.val.items(), strict=True)
    }
    return {**train, **val}


def write_devkit(root: Path, data: ImageNet) -> None:
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(data.devkit, "w:gz"))


def unpacked(root: Path) -> None:
    write_train_tree(root / "train", DATA)
    write_val_tree(root / "val", DATA)


def unpacked_with_flat_val(root: Path) -> None:
    write_train_tree(root / "train", DATA)
    write_files(root / "val", DATA.val)
    write_files(root, DATA.devkit)


def unpacked_with_devkit(root: Path) -> None:
    unpacked(root)
    write_devkit(root, DATA)


def folder_of_inner_archives(root: Path) -> None:
    write_files(root / "train", {f"{wnid}.tar": tar(files) for wnid, files in DATA.train.items()})
    write_val_tree(root / "val", DATA)


def kaggle(root: Path) -> None:
    write_train_tree(root / "ILSVRC/Data/CLS-LOC/train", DATA)
    write_files(root / "ILSVRC/Data/CLS-LOC/val", DATA.val)
    write_files(root / "ILSVRC/Data/CLS-LOC/test", {"ILSVRC2012_test_00000001.JPEG": jpeg()})
    rows = [
        f"{name.removesuffix('.JPEG')},{wnid} 85 1 499 272 {wnid} 1 1 2 2"
        for wnid, name in zip(DATA.val_wnids, DATA.val, strict=True)
    ]
    random.Random(0).shuffle(rows)
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))


def packed_by_others(root: Path) -> None:
    """With folders, hidden files and times of their own in the archives."""
    inner = {
        f"{wnid}.tar": tar({f"./{wnid}/{name}": files[name] for name in files})
        for wnid, files in DATA.train.items()
    }
    write_archives(root, DATA)
    (root / TRAIN_NAME).write_bytes(tar({"._junk": b"", **inner}))
    folder, archive = root.parent / "files", root / VAL_NAME
    write_files(folder, DATA.val)
    with tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT) as packed:
        packed.add(folder, "val")  # times are fractions, which need extended headers


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


def without(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {other: content for other, content in files.items() if other != name}


def lose_an_image(root: Path) -> None:
    first = min(DATA.train)
    fewer = without(DATA.train[first], min(DATA.train[first]))
    write_archives(root, replace(DATA, train={**DATA.train, first: fewer}))
    write_devkit(root, DATA)


def lose_an_inner_archive(root: Path) -> None:
    write_archives(root, replace(DATA, train=dict(list(DATA.train.items())[1:])))


def empty_an_inner_archive(root: Path) -> None:
    write_archives(root, replace(DATA, train={**DATA.train, min(DATA.train): {}}))


def rename_a_class(root: Path) -> None:
    train = dict(DATA.train)
    files = train.pop("n11111111")
    renamed = {name.replace("n11111111", "n99999999"): files[name] for name in files}
    write_archives(root, replace(DATA, train={**train, "n99999999": renamed}))
    write_devkit(root, DATA)


def misplace_an_image(root: Path) -> None:
    first, second = sorted(DATA.train)[:2]
    train = {**DATA.train, first: {**DATA.train[first], f"{second}_999.JPEG": jpeg()}}
    write_archives(root, replace(DATA, train=train))


def repeat_an_image(root: Path) -> None:
    write_archives(root, DATA)
    name = min(DATA.val)
    (root / VAL_NAME).write_bytes(tar({**DATA.val, f"again/{name}": DATA.val[name]}))


def count_from_zero(root: Path) -> None:
    lines = [str(DATA.order.index(wnid)) for wnid in DATA.val_wnids]
    write_ground_truth(root, "\n".join(lines).encode())


def write_ground_truth(root: Path, content: bytes) -> None:
    write_archives(root, DATA)
    devkit = {**DATA.devkit, f"{DEVKIT_NAME}/data/{GROUND_TRUTH_NAME}": content}
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))


def blank_line_in_the_ground_truth(root: Path) -> None:
    write_ground_truth(root, DATA.ground_truth.replace(b"\n", b"\n\n", 2))


def endless_number_in_the_ground_truth(root: Path) -> None:
    write_ground_truth(root, DATA.ground_truth + b"1" * 5000)


def cut_the_ground_truth(root: Path) -> None:
    write_archives(root, DATA)
    write_devkit(root, replace(DATA, val_wnids=DATA.val_wnids[:-1]))


def lose_a_val_image(root: Path) -> None:
    write_archives(root, DATA)
    (root / VAL_NAME).write_bytes(tar(without(DATA.val, val_name(3))))


def lose_the_devkit(root: Path) -> None:
    write_archives(root, DATA)
    (root / f"{DEVKIT_NAME}.tar.gz").unlink()


def keep_the_ground_truth_alone(root: Path) -> None:
    lose_the_devkit(root)
    (root / GROUND_TRUTH_NAME).write_bytes(DATA.ground_truth)


def swap_val_folders(root: Path) -> None:
    unpacked_with_devkit(root)
    (root / "val/n11111111").rename(root / "val/x")
    (root / "val/n22222222").rename(root / "val/n11111111")
    (root / "val/x").rename(root / "val/n22222222")


def lose_a_val_folder(root: Path) -> None:
    unpacked(root)
    for path in (root / "val/n11111111").iterdir():
        path.unlink()
    (root / "val/n11111111").rmdir()


def number_a_class_twice(root: Path) -> None:
    write_archives(root, DATA)
    meta = make_meta([(wnid, 5) for wnid in (*DATA.order[:-1], DATA.order[0])])
    devkit = {**DATA.devkit, f"{DEVKIT_NAME}/data/meta.mat": meta}
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))


def count_without_end(root: Path) -> None:
    write_archives(root, DATA)
    meta = make_meta([(wnid, math.inf) for wnid in DATA.order])
    devkit = {**DATA.devkit, f"{DEVKIT_NAME}/data/meta.mat": meta}
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))


def garble_the_meta(root: Path) -> None:
    write_archives(root, DATA)
    devkit = {**DATA.devkit, f"{DEVKIT_NAME}/data/meta.mat": b"MATLAB 5.0" * 50}
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))


def lose_the_meta(root: Path) -> None:
    write_archives(root, DATA)
    devkit = without(DATA.devkit, f"{DEVKIT_NAME}/data/meta.mat")
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))


def cut_the_devkit(root: Path) -> None:
    write_archives(root, DATA)
    path = root / f"{DEVKIT_NAME}.tar.gz"
    path.write_bytes(path.read_bytes()[:300])


def garble_the_table(root: Path) -> None:
    kaggle(root)
    (root / "LOC_val_solution.csv").write_text("<html>404</html>\nnot found\n")


def endless_field_in_the_table(root: Path) -> None:
    kaggle(root)
    with (root / SOLUTION_NAME).open("a") as file:
        file.write("x" * 200_000)


def contradict_the_table(root: Path) -> None:
    kaggle(root)
    write_devkit(root, replace(DATA, val_wnids=DATA.val_wnids[::-1]))


def no_train(root: Path) -> None:
    write_archives(root, DATA)
    (root / TRAIN_NAME).unlink()


def other_files_among_the_classes(root: Path) -> None:
    unpacked(root)
    (root / "train/extra").mkdir()


def long_names(root: Path) -> None:
    write_archives(root, DATA)
    (root / VAL_NAME).write_bytes(tar({f"{'long/' * 30}{val_name(1)}": jpeg()}))


def long_names_of_another_form(root: Path) -> None:
    write_archives(root, DATA)
    name = f"{'x' * 120}{val_name(1)}"
    (root / VAL_NAME).write_bytes(tar({name: jpeg()}, form=tarfile.PAX_FORMAT))


def colon_in_a_name(root: Path) -> None:
    write_archives(root, replace(DATA, val={**DATA.val, "ILSVRC2012_val_1.a:b.JPEG": jpeg()}))


def name_too_long_for_a_shard(root: Path) -> None:
    unpacked(root)
    (root / f"train/n11111111/n11111111_{'1' * 87}.JPEG").write_bytes(jpeg())


def odd_name(root: Path) -> None:
    write_archives(root, DATA)
    (root / VAL_NAME).write_bytes(tar({"a picture.JPEG": jpeg()}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lose_an_image, r"than the devkit says \(n11111111 has 4 of 5\)"),
        (lose_an_inner_archive, r"train.tar has 3 classes; expected 4 \(--num-classes\)"),
        (empty_an_inner_archive, r"train.tar, bytes \d+ to \d+, holds no image"),
        (rename_a_class, "and of the devkit differ: n11111111, n99999999 in only one"),
        (misplace_an_image, "holds 'n22222222_999.JPEG'; expected names like n11111111_"),
        (repeat_an_image, r"several images of one name \(ILSVRC2012_val_00000001\)"),
        (count_from_zero, r"holds '0' in line 3.*; expected numbers from 1 to 4"),
        (blank_line_in_the_ground_truth, "holds '' in line 2.*; expected numbers from 1 to 4"),
        (endless_number_in_the_ground_truth, "holds '11111111111111111111' in line 10; expected"),
        (cut_the_ground_truth, "and of the ground truth differ: ILSVRC2012_val_00000009 in only"),
        (lose_a_val_image, "and of the ground truth differ: ILSVRC2012_val_00000003 in only"),
        (lose_the_devkit, f"does not say classes: put {DEVKIT_NAME}.tar.gz"),
        (keep_the_ground_truth_alone, "the ground-truth file alone is not enough"),
        (swap_val_folders, "folders of other classes than the ground truth says"),
        (lose_a_val_folder, "differ: n11111111 in only one of them"),
        (number_a_class_twice, "and of the devkit differ: n11111111 in only one"),
        (count_without_end, "meta.mat of the devkit cannot be read .*infinity"),
        (garble_the_meta, "meta.mat of the devkit cannot be read"),
        (lose_the_meta, f"{DEVKIT_NAME}.tar.gz has no meta.mat"),
        (cut_the_devkit, f"{DEVKIT_NAME}.tar.gz cannot be unpacked"),
        (garble_the_table, "LOC_val_solution.csv is not Kaggle's table"),
        (endless_field_in_the_table, "LOC_val_solution.csv is not Kaggle's table .*field larger"),
        (contradict_the_table, "LOC_val_solution.csv and the devkit differ"),
        (no_train, f"has no {TRAIN_NAME} or train or "),
        (other_files_among_the_classes, "train holds extra among its classes"),
        (long_names, r"holds \././@LongLink, which is not a plain file \(type b'L'\)"),
        (long_names_of_another_form, "holds 'x+'; expected names like"),
        (odd_name, "holds 'a picture.JPEG'; expected names like ILSVRC2012_val_00000001.JPEG"),
        (colon_in_a_name, "holds 'ILSVRC2012_val_1.a:b.JPEG'; expected names like"),
        (name_too_long_for_a_shard, "holds 'n11111111_1+.JPEG'; expected names like"),
        (Path.touch, "is not a folder; expected one that holds ILSVRC2012_img_train.tar"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(root := tmp_path / "raw")
    with pytest.raises(SourceError, match=message) as error:
        open_small(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [TRAIN_NAME, VAL_NAME])
def test_archive_that_is_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    root = write_archives(tmp_path, DATA)
    content = (root / name).read_bytes()
    end = len(content.rstrip(b"\0"))
    rng = random.Random(1)
    for stop in [0, 512, 1024, *(rng.randrange(end) for _ in range(40))]:
        (root / name).write_bytes(content[:stop])
        with pytest.raises(SourceError, match="is damaged, cut off"):
            open_small(root)


@pytest.mark.slow
def test_any_damage_of_the_devkit_is_noticed(tmp_path: Path) -> None:
    path = write_archives(tmp_path, DATA) / f"{DEVKIT_NAME}.tar.gz"
    content, devkit = path.read_bytes(), read_devkit(tmp_path)
    for place, change in itertools.product(range(len(content)), (1, 16)):
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        try:
            found = read_devkit(tmp_path)
        except SourceError:
            continue
        assert found == devkit, place  # a bit of the time or the like


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


@pytest.mark.parametrize("stop", [0, 1400])
def test_inner_archive_that_is_cut_is_reported_with_its_location(tmp_path: Path, stop: int) -> None:
    write_archives(tmp_path, DATA)
    inner = {f"{wnid}.tar": tar(files) for wnid, files in DATA.train.items()}
    first = min(inner)
    (tmp_path / TRAIN_NAME).write_bytes(tar({**inner, first: inner[first][:stop]}))
    where = rf"{TRAIN_NAME}, bytes 512 to {512 + stop}, is damaged, cut off"
    with pytest.raises(SourceError, match=where):
        open_small(tmp_path)


@pytest.mark.slow
def test_longest_name_that_a_shard_can_hold(tmp_path: Path) -> None:
    key = f"n11111111_{'1' * 86}"
    unpacked(root := tmp_path / "raw")
    (root / f"train/n11111111/{key}.JPEG").write_bytes(jpeg())
    shard(root, tmp_path / "out")
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        assert f"{key}.jpg" in archive.getnames()


def test_damaged_header_is_refused(tmp_path: Path) -> None:
    root = write_archives(tmp_path, DATA)
    content = bytearray((root / TRAIN_NAME).read_bytes())
    content[content.index(b"n22222222_8.JPEG")] ^= 1
    (root / TRAIN_NAME).write_bytes(content)
    with pytest.raises(SourceError, match=r"damaged tar header after n22222222_1\.JPEG"):
        open_small(root)


def test_archive_that_shrinks_meanwhile_is_an_error_of_the_disk(tmp_path: Path) -> None:
    source = open_small(write_archives(tmp_path, DATA))
    (tmp_path / VAL_NAME).write_bytes(b"")
    with pytest.raises(OSError, match=r"it ends in or before .*_00000001\.JPEG") as error:
        source.reader.read(source.splits["val"][0])
    assert error.value.filename == str(tmp_path / VAL_NAME)


def test_missing_scipy_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(SourceError, match=r"pip install 'alexnet-2012\[imagenet\]'"):
        open_small(write_archives(tmp_path, DATA))
    unpacked(root := tmp_path / "tree")
    assert contents(open_small(root)) == expected_contents(DATA)


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
    job = start_cli(*command, "--workers", 1)
    wait_for_shards(output, 4)
    job.kill()
    job.communicate(timeout=30)
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
        timeout=60,
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
