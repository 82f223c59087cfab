"""`look` and `diff`: what they say of a shard set and of two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import webdataset

from data_prep.look.compare import compare
from data_prep.look.look import describe, look
from data_prep.look.sheet import contact_sheet
from tests.data_prep.raw_data import jpeg, run_cli, write_folder


def make_shards(raw: Path, shards: Path, *options: object) -> Path:
    done = run_cli("shard", "folder", "--input", raw, "--output", shards, *options)
    assert done.returncode == 0, done.stderr
    return shards


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder(tmp_path_factory.mktemp("look") / "raw")
    shutil.copy(root / "train/cat/0000.jpg", root / "val/dog/copy.jpg")  # leaks, with a wrong label
    shutil.copy(root / "train/dog/0001.jpg", root / "train/dog/again.jpg")
    (root / "train/dog/large.jpg").write_bytes(jpeg(7, 80, 90))
    return root


@pytest.fixture(scope="module")
def shards(raw: Path) -> Path:
    return make_shards(raw, raw.parent / "shards")


def test_a_person_is_told_what_is_in_there(shards: Path) -> None:
    text = "\n".join(describe(look(shards, 100)))
    lines = text.splitlines()
    assert lines[0] == "2 classes of images: encoding jpeg, source folder"
    assert "train: 10 samples in 1 shards" in text
    assert "4 to 6 of a class" in text
    assert [line.split() for line in lines if line.startswith(("cat", "dog"))] == [
        ["cat", "4", "2"],
        ["dog", "6", "3"],
    ]
    assert "sizes 60×40 14, 90×80 1" in text
    assert "formats JPEG RGB 15" in text


def test_images_that_are_there_twice_are_named(shards: Path) -> None:
    text = "\n".join(describe(look(shards, 100)))
    assert "2 images are there more than once" in text
    assert "LEAKAGE: 1 of them are in train and in val" in text
    assert "1 of them have more than one label" in text
    assert (
        "train train-000000.tar cat_0000.jpg (cat) = val val-000000.tar dog_copy.jpg (dog)" in text
    )
    assert "dog_0001.jpg (dog) = train train-000000.tar dog_again.jpg" in text


def test_a_damaged_image_is_named(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    path = copy / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[600:900] = bytes(300)
    path.write_bytes(content)
    assert "damaged: train train-000000.tar" in "\n".join(describe(look(copy, 100)))


def test_the_page_shows_images_of_each_class(shards: Path, tmp_path: Path) -> None:
    done = run_cli("look", shards, "--html", tmp_path / "page.html")
    assert done.returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert page == contact_sheet(look(shards, 2000))
    assert page.count("<img") == 4 + 6
    assert "<h2>cat</h2>" in page


def test_a_class_may_have_no_images(tmp_path: Path) -> None:
    raw, names = tmp_path / "raw", tmp_path / "names.txt"
    names.write_text("cat\ndog\nemu\n")
    raw.mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(raw / f"{split}.tar")) as writer:
            for number in range(2):
                writer.write({"__key__": f"{number}", "jpg": jpeg(number), "cls": number})
    command = ("adopt", raw, "--output", tmp_path / "shards", "--class-names", names)
    assert run_cli(*command).returncode == 0
    page = contact_sheet(look(tmp_path / "shards", 10))
    assert page.count("<h2>") == page.count("<img") == 2


@pytest.mark.slow
def test_equal_sets_have_no_difference(raw: Path, shards: Path, tmp_path: Path) -> None:
    assert compare(shards, make_shards(raw, tmp_path / "other", "--seed", 5)) == []
    assert run_cli("diff", shards, shards).stdout == "the same samples\n"


@pytest.mark.slow
def test_differences_are_named(raw: Path, shards: Path, tmp_path: Path) -> None:
    other = shutil.copytree(raw, tmp_path / "raw")
    (other / "train/cat/0000.jpg").rename(other / "val/cat/moved.jpg")
    (other / "train/dog/new.jpg").write_bytes(jpeg(99))
    found = compare(shards, make_shards(other, tmp_path / "shards"))
    assert found == [
        f"only in {shards}: 1 samples of train, of cat",
        f"only in {tmp_path / 'shards'}: 1 samples of train, of dog",
        f"only in {tmp_path / 'shards'}: 1 samples of val, of cat",
    ]
    (other / "train/dog").rename(other / "train/wolf")
    (other / "val/dog").rename(other / "val/wolf")
    done = run_cli("diff", shards, make_shards(other, tmp_path / "wolves", "--size", 32))
    assert done.returncode == 1
    assert "image size: None and (32, 32)" in done.stdout
    assert f"classes only in {shards}: dog" in done.stdout
