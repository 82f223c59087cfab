"""The source `imagenet` refuses what is damaged or contradicts itself."""

from __future__ import annotations

import itertools
import math
import random
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.sources.imagenet_labels import SOLUTION_NAME, read_devkit
from data_prep.sources.source import SourceError
from tests.data_prep.imagenet_archive import (
    DEVKIT_NAME,
    GROUND_TRUTH_NAME,
    TRAIN_NAME,
    VAL_NAME,
    make_meta,
    tar,
    val_name,
    write_archives,
)
from tests.data_prep.raw_data import jpeg
from tests.data_prep.sources.imagenet_layouts import (
    DATA,
    contents,
    expected_contents,
    kaggle,
    open_small,
    unpacked,
    unpacked_with_devkit,
    write_devkit,
    write_ground_truth,
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


@pytest.mark.parametrize("stop", [0, 1400])
def test_inner_archive_that_is_cut_is_reported_with_its_location(tmp_path: Path, stop: int) -> None:
    write_archives(tmp_path, DATA)
    inner = {f"{wnid}.tar": tar(files) for wnid, files in DATA.train.items()}
    first = min(inner)
    (tmp_path / TRAIN_NAME).write_bytes(tar({**inner, first: inner[first][:stop]}))
    where = rf"{TRAIN_NAME}, bytes 512 to {512 + stop}, is damaged, cut off"
    with pytest.raises(SourceError, match=where):
        open_small(tmp_path)


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
