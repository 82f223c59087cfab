"""The command: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import read_manifest
from pipeline import load_model
from pipeline.predict.__main__ import main
from tests.data_prep.raw_data import encode, jpeg, make_pixels
from tests.data_prep.shard_set.test_image_files import make_tar
from tests.pipeline.trained_run import SHARDS, unpack_usable_run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_usable_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images, and with what is none."""
    folder = tmp_path / "images"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "deep" / "er" / "b").write_bytes(encode(Image.fromarray(make_pixels(2)), "PNG"))
    (folder / "cut.jpg").write_bytes(jpeg(3)[:-200])
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    (folder / "notes.txt").write_text("text")
    return folder


def predict(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_bad_image_is_one_line_and_stops_nothing(
    run: Path, images: Path, capsys: Captured
) -> None:
    assert predict(run, images, images / "missing.jpg", images / "a.jpg", "--top", 2) == 1
    out, errors = capsys.readouterr()
    a, b = images / "a.jpg", images / "deep/er/b"
    found = load_model(run)([a, b, a])
    pairs = [pair for one in found for pair in one.top(2)]
    rows = out.splitlines()
    names = [name if rank == 0 else "" for name in (a, b, a) for rank in range(2)]
    for row, name, (class_name, share) in zip(rows[1:], names, pairs, strict=False):
        assert row.startswith(f"{name} ")
        assert row.split()[-2:] == [f"{share:.2%}", class_name]
    assert rows[7:] == ["3 images classified, 3 not"]
    assert errors.splitlines() == [
        f"warning: left out below {images}, as neither name nor first bytes are those of an image: "
        f"{images}/notes.txt",
        f"error: {images}/cut.jpg: truncated: Corrupt JPEG data: premature end of data segment; "
        "copy it again from its source",
        f"error: {images}/gone.png: No such file or directory",
        f"error: {images}/missing.jpg: No such file or directory",
    ]


def test_what_is_right_in_a_tar_is_counted(run: Path, capsys: Captured) -> None:
    """A shard of pixels; the right class is marked, or added, with each image."""
    (tar,) = read_manifest(SHARDS).split("val").shard_paths(SHARDS)
    with tarfile.open(tar) as opened:
        contents = {member.name: extracted(opened, member) for member in opened}
    labels = [int(content) for name, content in contents.items() if name.endswith(".cls")]
    images = [content for name, content in contents.items() if name.endswith(".npy")]
    found = load_model(run)([codec_of("rgb").decode(image) for image in images])
    is_top = [label == one.ranking[0] for label, one in zip(labels, found, strict=True)]
    is_in_five = [label in one.ranking[:5] for label, one in zip(labels, found, strict=True)]
    assert predict(run, tar) == 0
    out = capsys.readouterr().out
    assert out.endswith(
        f"10 images classified\ntop-1 {sum(is_top) / 10:.2%} ({sum(is_top)} of 10)\n"
        f"top-5 {sum(is_in_five) / 10:.2%} ({sum(is_in_five)} of 10)\n"
    )
    assert 0 < sum(is_in_five) < 10
    assert out.count("✓") == 10


def extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def test_labels_may_be_names_and_others_are_counted_apart(
    run: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = load_model(run)
    best, *_, worst = model(jpeg()).ranking.tolist()
    labels = [str(best), model.class_names[best], model.class_names[worst], "unicorn", "99"]
    members: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        members |= {f"{number}.jpg": jpeg(), f"{number}.cls": label.encode()}
    tar = make_tar(tmp_path / "labelled.tar", members | {"alone.jpg": jpeg()})
    assert predict(run, tar, "--top", 1) == 0
    out = capsys.readouterr().out
    assert "6 images classified\ntop-1 66.67% (2 of 3)\ntop-5 66.67% (2 of 3)\n" in out
    assert out.endswith("2 labels of none of the network's classes\n")
    marked = [line.split()[-2] for line in out.splitlines() if line.endswith("✓")]
    assert marked == [model.class_names[label] for label in (best, best, worst)]


def test_json_and_csv_say_the_same(run: Path, images: Path, capsys: Captured) -> None:
    files = [images / "a.jpg", images / "deep/er/b"]
    assert predict(run, *files, "--json", "--top", 3) == 0
    out, errors = capsys.readouterr()
    assert errors == "2 images classified\n"
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == list(map(str, files))
    assert predict(run, *files, "--csv", "--top", 3) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = load_model(run).class_names
    for row, cells in zip(rows, table, strict=True):
        assert (cells["image"], cells["true_class"], row["true_class"]) == (row["image"], "", None)
        for rank, found in enumerate(row["predictions"], 1):
            assert found["class"] == cells[f"class_{rank}"] == names[found["label"]]
            assert found["probability"] == float(cells[f"probability_{rank}"])
        assert len(row["predictions"]) == 3


@pytest.mark.parametrize("content", [jpeg(), codec_of("yuv420").encode(make_pixels(), None)])
def test_an_image_is_read_from_standard_input(run: Path, content: bytes, capsys: Captured) -> None:
    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(content))):
        assert predict(run, "-", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["image"] == "standard input"
    assert row["predictions"][0]["class"] == load_model(run)(content).class_name


def test_images_before_the_damage_of_a_tar_are_classified(
    run: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    noise = encode(Image.effect_noise((100, 100), 90), "PNG")
    tar = make_tar(tmp_path / "a.tar", {"a.jpg": jpeg(), "b.png": noise})
    tar.write_bytes(tar.read_bytes()[:-10_000])
    empty = make_tar(tmp_path / "empty.tar", {"a.txt": b"text"})
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(b"\x1f\x8b" + bytes(100))
    assert predict(run, tar, empty, packed, images / "a.jpg", "--csv") == 1
    out, errors = capsys.readouterr()
    assert [line.partition(",")[0] for line in out.splitlines()[1:]] == [
        f"{tar}:a.jpg",
        f"{images}/a.jpg",
    ]
    damage, nothing, compressed, summary = errors.splitlines()
    assert damage.startswith(f"error: {tar} is damaged: cut off in b.png")
    assert nothing.startswith(f"error: {empty} holds no images")
    assert compressed.startswith(f"error: {packed} is compressed (gzip)")
    assert summary == "2 images classified, 3 not"


@pytest.mark.slow
def test_the_figure_shows_each_image_and_only_the_first_of_many(
    run: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    page, drawing = tmp_path / "page.html", tmp_path / "figure.png"
    assert predict(run, images / "a.jpg", images / "deep", "--figure", page) == 0
    text = page.read_text()
    assert text.count("<img ") == text.count('src="data:image/') == 2
    assert "http" not in text.replace("http-equiv", "")
    for name, share in load_model(run)(images / "a.jpg").top():
        assert f'<span class="name">{name}</span><span class="value">{share:.1%}</span>' in text
    many = make_tar(tmp_path / "many.tar", {f"{n}$<b>.jpg": jpeg(n) for n in range(50)})
    assert predict(run, many, "--figure", drawing, "--top", 1) == 0
    assert capsys.readouterr().err == f"note: {drawing} shows the first 48 of 50 images\n"
    with Image.open(drawing) as image:
        assert image.height > image.width > 1000
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 1000, "there are pictures in it"


def test_what_cannot_be_done_is_said_before_any_work(
    run: Path, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    refusals = {
        "expected a name that ends in .png or .html": ("--figure", tmp_path / "a.gif"),
        "nowhere is no folder": ("--figure", tmp_path / "nowhere" / "a.png"),
        "is not a regular file": ("--figure", tmp_path / "folder.png"),
        "leave one out": ("--json", "--csv"),
        "ten views need images larger": ("--views", 10),
    }
    (tmp_path / "folder.png").mkdir()
    for expected, words in refusals.items():
        assert predict(run, images / "a.jpg", *words) == 1
        out, errors = capsys.readouterr()
        assert expected in errors
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        assert out == ""
    assert predict(tmp_path, images) == 1
    assert "is no trained network" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert predict(run, images / "cut.jpg", "--figure", page) == 1
    assert "is not drawn: there is no image to show" in capsys.readouterr().err
    assert not page.exists()
