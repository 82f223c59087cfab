"""Images in folders and in tars are found, whatever lies beside them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_prep.shard_set.foreign_tar import ForeignTarError
from data_prep.shard_set.image_files import is_image_file, scan, walk
from data_prep.shard_set.tar_images import walk_images
from tests.data_prep.raw_data import encode, jpeg

PICTURE = jpeg(height=8, width=8)


def make_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_each_folder_comes_once_level_by_level(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("x.jpg", "a/y.jpg", "b/z.txt", "b/deep/w.jpg", ".hidden/no.jpg", "b/.no.jpg"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "broken.jpg").symlink_to(tmp_path / "nothing")
    names = [[path.name for path in found.files] for found in walk(tmp_path)]
    assert names == [["x.jpg"], ["y.jpg"], ["z.txt"], ["w.jpg"]]
    assert [path.name for path in scan(tmp_path / "a").others] == ["broken.jpg"]


def test_an_image_is_known_by_its_name_or_by_its_content(tmp_path: Path) -> None:
    contents = {"a.JPeG": b"", "no end": PICTURE, "b.txt": b"text", "c": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = {name: is_image_file(tmp_path / name) for name in contents}
    assert found == {"a.JPeG": True, "no end": True, "b.txt": False, "c": False}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_of_a_tar_are_found_with_their_labels(tmp_path: Path, form: int) -> None:
    long = "folder/" * 30
    members = {
        "README": b"text",
        "one.jpg": PICTURE,
        "one.cls": b"3\n",
        "two.cls": b"cat",
        "two.seg.png": b"no image, but called one",
        "three.jpg": PICTURE,
        "three.png": PICTURE,
        "three.cls": b"1",
        "four.jpg": PICTURE,
        "four.json": b'{"label": 7}',
        "five.jpg": PICTURE,
        "five.json": b'{"caption": "a cat"}',
        "._six.jpg": PICTURE,
        "seven": PICTURE,
        "eight.npy": b"pixels",
        f"{long}nine.jpg": PICTURE,
    }
    path = make_tar(tmp_path / "a.tar", members, form)
    content = path.read_bytes()
    found = {}
    for image in walk_images(path):
        start = image.member.offset
        assert content[start : start + image.member.num_bytes] == members[image.member.name]
        found[image.member.name] = image.label
    assert found == {
        "one.jpg": 3,
        "two.seg.png": "cat",
        "three.jpg": None,
        "three.png": None,
        "four.jpg": 7,
        "five.jpg": None,
        "seven": None,
        "eight.npy": None,
        f"{long}nine.jpg": None,
    }


def test_images_before_the_damage_of_a_tar_are_found(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "a.tar",
        {"a.jpg": PICTURE, "b.png": encode(Image.effect_noise((100, 100), 90), "PNG")},
    )
    path.write_bytes(path.read_bytes()[:-10_000])
    images = walk_images(path)
    assert next(images).member.name == "a.jpg"
    with pytest.raises(ForeignTarError, match=r"a\.tar is damaged: cut off"):
        list(images)
