"""The source `folder`: what is a class, what is a sample, and what is refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.sources.folder import open_folder
from data_prep.sources.selection import Selection, select
from data_prep.sources.source import SourceError
from tests.data_prep.raw_data import jpeg, write_folder

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
"""One name, as Linux and as macOS write it."""


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())


def test_folder_gives_classes_by_name_and_samples_by_split(tmp_path: Path) -> None:
    source = open_folder(write_folder(tmp_path, 3, 2, ("dog", "cat")))
    assert source.class_names == ("cat", "dog")
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 6,
        "val": 4,
    }
    samples = {sample.key: sample for sample in source.splits["train"]}
    sample = samples["dog_0002"]
    assert (sample.label, sample.locator) == (1, "train/dog/0002.jpg")
    content = (tmp_path / "train/dog/0002.jpg").read_bytes()
    assert source.reader.read(sample) == content


def test_split_test_is_val(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    samples = open_folder(tmp_path).splits["val"]
    assert sorted(sample.locator for sample in samples)[0] == "test/cat/0000.jpg"


def test_val_goes_before_test_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path)
    add_image(tmp_path / "test/cat/other.jpg")
    with caplog.at_level(logging.WARNING):
        samples = open_folder(tmp_path).splits["val"]
    assert {sample.locator.split("/")[0] for sample in samples} == {"val"}
    assert f"{tmp_path / 'test'} is left out" in caplog.text


def test_files_count_whatever_they_are_called_but_hidden_ones(tmp_path: Path) -> None:
    write_folder(tmp_path, 1, 1)
    for name in (".DS_Store", "0000.png", "notes.txt", "a.b.JPEG"):
        add_image(tmp_path / "train/cat" / name)
    (tmp_path / "train/.cache").mkdir()
    samples = open_folder(tmp_path).splits["train"]
    assert sorted(sample.key for sample in samples if sample.label == 0) == [
        "cat_0000",
        "cat_0000-2",
        "cat_a_b",
        "cat_notes",
    ]


def remove_val(root: Path) -> None:
    (root / "val").rename(root / "evaluation")


def empty_class(root: Path) -> None:
    (root / "val/dog/0000.jpg").unlink()
    (root / "val/dog/0001.jpg").unlink()


def extra_class(root: Path) -> None:
    add_image(root / "val/wolf/1.jpg")


def subfolder(root: Path) -> None:
    add_image(root / "train/cat/more/1.jpg")


def broken_link(root: Path) -> None:
    (root / "train/cat/gone.jpg").symlink_to("nowhere")


def pipe(root: Path) -> None:
    os.mkfifo(root / "val/dog/pipe.jpg")


def name_that_is_no_text(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "c\udcffat")


def name_of_two_lines(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "c\nat")


def space_at_the_end(root: Path) -> None:
    (root / "val/dog").rename(root / "val/dog ")


def other_case(root: Path) -> None:
    (root / "val/dog").rename(root / "val/Dog")


def other_script(root: Path) -> None:
    (root / "val/dog").rename(root / "val/d\N{CYRILLIC SMALL LETTER O}g")


def one_name_in_two_forms(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / COMPOSED)
        (root / split / "dog").rename(root / split / DECOMPOSED)


def no_classes(root: Path) -> None:
    (root / "train").rename(root / "x")
    (root / "train").mkdir()


def numbers_as_names(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("1", "2", "10"):
            add_image(root / split / name / "1.jpg")


def no_root(root: Path) -> None:
    root.rename(root.parent / "moved")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_val, "the input has no val split; cut one off train with --val-ratio"),
        (empty_class, "val/dog is empty: add images"),
        (extra_class, "differ: wolf in only one of them"),
        (subfolder, r"folders among the images \(.*train/cat/more\)"),
        (broken_link, r"are not files \(.*train/cat/gone.jpg\)"),
        (pipe, r"are not files \(.*val/dog/pipe.jpg\)"),
        (name_that_is_no_text, r"are not UTF-8.*'c\\udcffat'"),
        (name_of_two_lines, r"hold line breaks.*'c\\nat'"),
        (space_at_the_end, "differ: 'dog ', dog in only one of them"),
        (other_case, "differ: Dog, dog in only one of them"),
        (other_script, r"differ: dog, d\u043eg \('d\\u043eg'\) in only one of them"),
        (one_name_in_two_forms, r"differ in their bytes \('caf\\xe9', 'cafe\\u0301'\): put their"),
        (no_classes, "train has no class folders"),
        (numbers_as_names, r"\(1, 10, 2\).*pad them with zeros to one length, e\.g\. 01"),
        (no_root, "is not a folder; expected one that holds train/CLASS"),
    ],
)
def test_folder_that_is_in_doubt_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    root = write_folder(tmp_path / "raw")
    spoil(root)
    with pytest.raises(SourceError, match=message):
        select(open_folder(root), Selection())


def test_a_name_is_the_same_in_other_bytes(tmp_path: Path) -> None:
    expected = open_folder(write_folder(tmp_path / "1", 2, 1, (COMPOSED, "dog")))
    write_folder(tmp_path / "2", 2, 1, (DECOMPOSED, "dog"))
    (tmp_path / "2/val" / DECOMPOSED).rename(tmp_path / "2/val" / COMPOSED)
    source = open_folder(tmp_path / "2")
    assert source.class_names == expected.class_names == (COMPOSED, "dog")
    for split in ("train", "val"):
        samples, others = source.splits[split], expected.splits[split]
        assert [(one.key, one.label) for one in samples] == [(one.key, one.label) for one in others]
        contents = [source.reader.read(one) for one in samples]
        assert contents == [expected.reader.read(one) for one in others]


def test_numbers_of_one_length_are_fine(tmp_path: Path) -> None:
    names = tuple(f"{number:02d}" for number in range(11))
    assert open_folder(write_folder(tmp_path, 1, 1, names)).class_names == names


def write_tiny_imagenet(root: Path) -> Path:
    """Two classes in the layout of Tiny ImageNet."""
    rows = []
    for label, name in enumerate(("n01443537", "n02841315")):
        images = root / "train" / name / "images"
        images.mkdir(parents=True)
        for number in range(2):
            (images / f"{name}_{number}.JPEG").write_bytes(jpeg(seed=10 * label + number))
        (images.parent / f"{name}_boxes.txt").write_text("x_0.JPEG\t0\t0\t62\t62\n")
        rows.append(f"val_{1 - label}.JPEG\t{name}\t0\t32\t44\t62\n")
    images = root / "val" / "images"
    images.mkdir(parents=True)
    for number in range(2):
        (images / f"val_{number}.JPEG").write_bytes(jpeg(seed=100 + number))
    (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "test/images").mkdir(parents=True)
    return root


def test_tiny_imagenet_in_its_own_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_folder(write_tiny_imagenet(tmp_path))
    assert source.class_names == ("n01443537", "n02841315")
    assert [(s.label, s.locator) for s in source.splits["val"]] == [
        (0, "val/images/val_1.JPEG"),
        (1, "val/images/val_0.JPEG"),
    ]
    assert [s.label for s in source.splits["train"]] == [0, 0, 1, 1]
    assert f"left out below {tmp_path}" in caplog.text
    assert "n01443537_boxes.txt" in caplog.text


def test_tiny_imagenet_whose_val_was_put_into_class_folders(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path)
    for number, name in ((1, "n01443537"), (0, "n02841315")):
        (root / "val" / name / "images").mkdir(parents=True)
        image = root / f"val/images/val_{number}.JPEG"
        image.rename(root / "val" / name / "images" / image.name)
    (root / "val/images").rmdir()  # the table stays
    assert [sample.label for sample in open_folder(root).splits["val"]] == [0, 1]


def row_without_class(root: Path) -> None:
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\n")


def table_that_is_no_text(root: Path) -> None:
    (root / "val/val_annotations.txt").write_bytes(b"\xff\n")


def image_without_row(root: Path) -> None:
    (root / "val/images/val_2.JPEG").write_bytes(jpeg())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (row_without_class, "line 1 is"),
        (table_that_is_no_text, "line 1 is"),
        (image_without_row, r"1 images are only in one.*val_2"),
    ],
)
def test_tiny_imagenet_that_is_not_whole(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(write_tiny_imagenet(tmp_path))
    with pytest.raises(SourceError, match=message):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_names_of_the_val_split(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "raw")
    (root / "val").rename(root / name)
    assert len(open_folder(root).splits["val"]) == 4


def test_classes_alone_are_train(tmp_path: Path) -> None:
    source = open_folder(write_folder(tmp_path) / "train")
    assert set(source.splits) == {"train"}
    assert source.class_names == ("cat", "dog")


def test_nested_images_belong_to_the_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train/cat/2019/may").mkdir(parents=True)
    (root / "train/cat/2019/may/0000.jpg").write_bytes(jpeg())
    with pytest.raises(SourceError, match="with --nested"):
        open_folder(root)
    keys = [sample.key for sample in open_folder(root, nested=True).splits["train"]]
    assert "cat_2019_may_0000" in keys
    assert len(keys) == 9


def test_nested_links_in_a_circle_end(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for name in ("one", "two"):
        (root / "train/cat" / name).symlink_to(root / "train/cat", target_is_directory=True)
    more = root / "train/cat/more"
    more.mkdir()
    (more / "0009.jpg").write_bytes(jpeg())
    (root / "train/cat/same").symlink_to(more, target_is_directory=True)
    keys = list(open_folder(root, nested=True).splits["train"].keys())
    assert [key for key in keys if key.startswith("cat")] == [
        *(f"cat_000{number}" for number in range(4)),
        "cat_more_0009",
    ]


@pytest.mark.parametrize(
    ("name", "content", "is_taken"),
    [
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", False),
        ("desktop.ini", b"[.ShellClassInfo]", False),
        ("notes.txt", b"", False),
        ("more.zip", b"PK\x03\x04", False),
        ("picture", b"\xff\xd8\xff\xe0", True),
        ("photo.dat", b"RIFF\x10\0\0\0WEBPVP8 ", True),
        ("song.wav", b"RIFF\x10\0\0\0WAVEfmt ", False),
        ("empty.jpg", b"", True),  # the conversion says what is wrong with it
        ("PHOTO.JPG", b"x", True),
    ],
)
def test_what_is_an_image(
    tmp_path: Path,
    name: str,
    content: bytes,
    is_taken: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_folder(tmp_path)
    (root / "train/cat" / name).write_bytes(content)
    locators = [sample.locator for sample in open_folder(root).splits["train"]]
    assert (f"train/cat/{name}" in locators) == is_taken
    assert (name in caplog.text) == (not is_taken)


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("TRAINING", "Validation"), ("Training", "Testing")]
)
def test_splits_may_be_called_by_other_words(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat/1.jpg").write_bytes(b"")
    source = open_folder(tmp_path)
    assert [len(source.splits[split]) for split in ("train", "val")] == [1, 1]
    (tmp_path / "train/cat").mkdir(parents=True)
    with pytest.raises(SourceError, match="are both the split 'train'"):
        open_folder(tmp_path)
