"""Conversions with `--restart`: what is stored of which image, and shard sets with and without."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.convert.conversion import convert
from data_prep.convert.images import store
from data_prep.convert.options import Options
from data_prep.convert.output import ConversionError
from data_prep.look.compare import compare
from data_prep.look.look import describe, look
from data_prep.shard_set import compiled
from data_prep.shard_set.jpeg_header import read_jpeg_header
from data_prep.shard_set.manifest import ShardSetError, WrittenEncoding, read_manifest
from data_prep.shard_set.pixels import decode_jpeg
from data_prep.shard_set.recoding import recode_jpeg
from data_prep.shard_set.rejection import RewriteReason
from data_prep.sources.folder import open_folder
from tests.data_prep.odd_jpegs import (
    arithmetic,
    sampled,
    segment,
    with_stray_bytes,
    with_wide_table,
)
from tests.data_prep.raw_data import (
    copy_tree,
    encode,
    hash_tree,
    jpeg,
    make_pixels,
    run_cli,
    write_folder,
)

pytestmark = pytest.mark.skipif(
    not compiled.is_compiled(), reason="data_prep.shard_set._pixels was not built"
)

EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned
GRAY = Image.fromarray(make_pixels()).convert("L")
LOSSLESS: dict[str, Callable[[], bytes]] = {
    "baseline": jpeg,
    "progressive": lambda: jpeg(progressive=True),
    "grayscale": lambda: encode(GRAY, "JPEG"),
    "with other marks": lambda: jpeg(restart_marker_blocks=3),
    "arithmetic codes": arithmetic,
    "a scan for each component": lambda: sampled(make_pixels(), [(2, 2), (1, 1), (1, 1)]),
    "metadata that Pillow fails at": lambda: with_stray_bytes(jpeg(), segment(0xEE, b"Adobe"), 2),
}
ENCODED: dict[RewriteReason, Callable[[], bytes]] = {
    "repaired": lambda: with_stray_bytes(jpeg(), b"\1\2\3", 2),
    "rotated": lambda: jpeg(exif=EXIF),
    "cmyk": lambda: encode(Image.fromarray(make_pixels()).convert("CMYK"), "JPEG"),
    "not_jpeg": lambda: encode(Image.fromarray(make_pixels()), "PNG"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_jpeg_that_can_be_recoded_keeps_its_pixels(name: str) -> None:
    content = LOSSLESS[name]()
    stored = store(content, "jpeg", None, restart=2)
    assert stored.rewritten == "recoded"
    assert stored.content == recode_jpeg(content, 2)
    expected = simplejpeg.decode_jpeg(content)
    assert np.array_equal(stored.pixels, expected)
    assert np.array_equal(decode_jpeg(stored.content), expected)


def check_marks(content: bytes, plain: bytes, restart: int) -> None:
    """It has markers, which the other one has not; they differ in nothing else."""
    assert b"\xff\xdd" in content
    assert b"\xff\xdd" not in plain
    assert recode_jpeg(content, restart) == recode_jpeg(plain, restart)


@pytest.mark.parametrize("reason", ENCODED)
def test_an_image_that_is_encoded_gets_marks_then(reason: RewriteReason) -> None:
    content = ENCODED[reason]()
    plain, stored = store(content, "jpeg", None, 90), store(content, "jpeg", None, 90, restart=2)
    assert stored.rewritten == plain.rewritten == reason
    check_marks(stored.content, plain.content, 2)
    assert np.array_equal(stored.pixels, plain.pixels)


def test_scaled_images_and_pixels_get_marks_too() -> None:
    for raw in (jpeg(), make_pixels()):
        plain, stored = (store(raw, "jpeg", 24, restart=restart) for restart in (0, 3))
        assert stored.rewritten == plain.rewritten
        check_marks(stored.content, plain.content, 3)
        assert np.array_equal(stored.pixels, plain.pixels)


def test_what_baseline_cannot_say_stays_as_it_came_and_is_counted() -> None:
    content = with_wide_table(jpeg(quality=30))
    stored = store(content, "jpeg", None, restart=2)
    assert (stored.content, stored.rewritten) == (content, "not_recoded")


def test_an_unusual_sampling_is_encoded_and_not_recoded() -> None:
    content = sampled(make_pixels(), [(3, 1), (1, 1), (1, 1)])
    stored = store(content, "jpeg", None, restart=2)
    assert stored.rewritten == "repaired"
    assert read_jpeg_header(stored.content).is_common
    assert b"\xff\xd0" in stored.content


@pytest.mark.parametrize("encoding", ["rgb", "yuv420"])
def test_it_has_no_effect_on_pixels(tmp_path: Path, encoding: WrittenEncoding) -> None:
    source = open_folder(write_folder(tmp_path / "raw"))
    options = Options(shards=tmp_path / "out", encoding=encoding, restart=2, workers=1)
    with pytest.raises(
        ConversionError, match=f"--restart has no effect with --encoding {encoding}"
    ):
        convert(source, options, io.StringIO())


def test_it_needs_the_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_library", None)
    source = open_folder(write_folder(tmp_path / "raw"))
    options = Options(shards=tmp_path / "out", restart=2, workers=1)
    with pytest.raises(ConversionError, match="install a C compiler and the headers of libjpeg-t"):
        convert(source, options, io.StringIO())
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 + 4 images, one of which cannot be recoded."""
    folder = write_folder(tmp_path_factory.mktemp("raw") / "raw", 8, 2)
    (folder / "train/cat/0001.jpg").write_bytes(with_wide_table(jpeg(quality=30)))
    (folder / "train/dog/0001.jpg").write_bytes(ENCODED["not_jpeg"]())
    return folder


def shard(raw: Path, output: Path, *options: object) -> str:
    words = ("--input", raw, "--output", output, "--samples-per-shard", 4, *options)
    result = run_cli("shard", "folder", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def restarted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = tmp_path_factory.mktemp("restarted") / "shards"
    said = shard(raw, shards, "--restart", 2, "--workers", 1)
    assert "rewritten: 1 not_jpeg, 1 not_recoded, 18 recoded" in said
    return shards


@pytest.mark.slow
def test_the_manifest_says_so_and_the_shard_set_is_whole(raw: Path, restarted: Path) -> None:
    manifest = read_manifest(restarted)
    assert manifest.options["restart"] == 2
    assert manifest.rewritten == {"not_jpeg": 1, "not_recoded": 1, "recoded": 18}
    verified = run_cli("verify", restarted, "--full")
    assert verified.stdout.endswith("no damage found (every byte)\n")
    options = Options(shards=restarted, samples_per_shard=4, restart=2)
    assert convert(open_folder(raw), options, io.StringIO()) == (manifest, 5, 0)
    with pytest.raises(ConversionError, match="restart was 2 and is 4"):
        convert(open_folder(raw), replace(options, restart=4), io.StringIO())


@pytest.fixture(scope="module")
def plain(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images without marks."""
    shards = tmp_path_factory.mktemp("plain") / "shards"
    shard(raw, shards)
    return shards


@pytest.mark.slow
def test_pixels_and_their_statistics_are_those_without_marks(
    raw: Path, plain: Path, restarted: Path
) -> None:
    assert read_manifest(plain).statistics == read_manifest(restarted).statistics
    assert "restart" not in json.loads((plain / "_info.json").read_bytes())["options"]
    options = Options(shards=plain, samples_per_shard=4, restart=2)
    with pytest.raises(ConversionError, match="restart was 0 and is 2"):
        convert(open_folder(raw), options, io.StringIO())


@pytest.mark.slow
def test_shard_sets_that_differ_in_marks_alone_have_the_same_samples(
    plain: Path, restarted: Path, tmp_path: Path
) -> None:
    assert compare(plain, restarted) == []
    assert "restart markers every 2 MCUs" in describe(look(restarted, 1))[0]
    index = np.load(restarted / "train.index.npy")
    shards = copy_tree(restarted, tmp_path / "shards")
    row = index[0]
    assert row["shard"] == 0
    with (shards / "train-000000.tar").open("r+b") as tar:
        tar.seek(int(row["offset"]) + int(row["num_bytes"]) - 40)
        tar.write(b"\1")
    found = compare(plain, shards)
    assert len(found) == 2
    assert all("1 samples of train" in line for line in found)


@pytest.mark.slow
def test_adopted_tars_are_compared_without_marks(
    plain: Path, restarted: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(read_manifest(plain).class_names))
    tars = sorted(map(str, restarted.glob("*.tar")))
    command = ("adopt", *tars, "--output", tmp_path / "adopted", "--class-names", names)
    assert run_cli(*command).returncode == 0
    assert not [line for line in compare(plain, tmp_path / "adopted") if "samples" in line]


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_sentence(
    plain: Path, restarted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_library", None)
    with pytest.raises(ShardSetError, match=r"have other restart markers, .* install a C compiler"):
        compare(plain, restarted)


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_tasks_or_interruptions(
    raw: Path, restarted: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shard(raw, shards, "--restart", 2, "--num-tasks", 2, "--task", 0)
    finished = sorted(shards.glob("*.tar"))
    assert len(finished) == 3
    finished[0].unlink()  # as if it had been killed before that one was there
    written = finished[1].stat().st_mtime_ns
    shard(raw, shards, "--restart", 2, "--workers", 3)
    assert finished[1].stat().st_mtime_ns == written
    assert hash_tree(shards) == hash_tree(restarted)
