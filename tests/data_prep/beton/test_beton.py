"""Writing a `.beton`: ffcv reads it, and whatever happens to the writer ends in a sentence."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.beton.beton import check_tables
from data_prep.beton.samples import ShardSamples
from data_prep.beton.writer import choose_page_bytes
from data_prep.convert.output import ConversionError
from data_prep.shard_set import beton_format
from data_prep.shard_set.beton_format import map_tables, open_beton
from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from tests.data_prep.raw_data import (
    copy_tree,
    encode,
    make_pixels,
    run_cli,
    write_folder,
)
from tests.ffcv_process import FfcvProcess, Job
from tests.machine import wait_until
from tests.pipeline.fake_run import write_shard_set

pytestmark = [pytest.mark.ffcv, pytest.mark.slow]


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoding jpeg; 21 + 6 images of 40×60, one of them grayscale and one progressive."""
    raw = write_folder(tmp_path_factory.mktemp("jpegs") / "raw", 10, 3)
    picture = Image.fromarray(make_pixels(seed=7))
    (raw / "train/cat/gray.jpg").write_bytes(encode(picture.convert("L"), "JPEG"))
    (raw / "train/cat/0000.jpg").write_bytes(encode(picture, "JPEG", progressive=True))
    command = ("shard", "folder", "--input", raw, "--output", raw.parent / "shards")
    result = run_cli(*command, "--samples-per-shard", 8)
    assert result.returncode == 0, result.stderr
    return raw.parent / "shards"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoding rgb, only `val`, no checksums; 3 images larger than ffcv's usual page."""
    shards = tmp_path_factory.mktemp("large") / "shards"
    images = np.random.default_rng(0).integers(0, 256, (3, 1700, 1700, 3), np.uint8)
    write_shard_set(shards, images, np.array([2, 0, 1]), ["a", "b", "c"], shard_length=2)
    return shards


@pytest.fixture(scope="module")
def betons(
    ffcv: FfcvProcess, jpegs: Path, synthetic: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """A shard set and its `.beton`, by encoding."""
    folder = tmp_path_factory.mktemp("betons")
    result = run_cli("beton", jpegs, folder / "jpeg.beton")
    size = (folder / "jpeg.beton").stat().st_size
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        f"{folder}/jpeg.beton: 21 train + 6 val samples of encoding jpeg in {size:,} bytes\n"
    )
    rgb = ffcv.write_beton(synthetic, folder / "rgb.beton")
    return {"jpeg": (jpegs, folder / "jpeg.beton"), "rgb": (synthetic, rgb)}


@pytest.fixture(scope="module")
def loaded(
    ffcv: FfcvProcess, betons: dict[str, tuple[Path, Path]]
) -> dict[str, Mapping[str, npt.NDArray[Any]]]:
    """What ffcv finds in the files."""
    return {encoding: ffcv.load(path) for encoding, (_, path) in betons.items()}


each_encoding = pytest.mark.parametrize("encoding", ["jpeg", "rgb"])


def read_tars(shards: Path) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """All images and labels of a shard set, train before val, decoded by Pillow or NumPy."""
    images, labels = [], []
    manifest = read_manifest(shards)
    for split in ("train", "val"):
        for name in manifest.split(split).filenames if split in manifest.splits else ():
            with tarfile.open(shards / name) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    content = io.BytesIO(file.read())
                    if member.name.endswith(".cls"):
                        labels.append(int(content.getvalue()))
                    elif member.name.endswith(".npy"):
                        images.append(np.load(content))
                    else:
                        images.append(np.asarray(Image.open(content).convert("RGB")))
    return np.stack(images), labels


@each_encoding
def test_ffcv_reads_what_was_sharded(
    betons: dict[str, tuple[Path, Path]],
    loaded: dict[str, Mapping[str, npt.NDArray[Any]]],
    encoding: str,
) -> None:
    images, labels = read_tars(betons[encoding][0])
    found = loaded[encoding]
    assert found["labels"].tolist() == labels
    differences = np.abs(found["images"].astype(int) - images)
    if encoding == "rgb":
        assert not differences.any()
    else:  # ffcv decodes by faster, less exact methods
        assert differences.mean() < 2
        assert differences.max() < 10


@each_encoding
def test_tables_are_what_ffcv_takes_them_for(
    betons: dict[str, tuple[Path, Path]],
    loaded: dict[str, Mapping[str, npt.NDArray[Any]]],
    encoding: str,
) -> None:
    shards, path = betons[encoding]
    found = loaded[encoding]
    record, tables = open_beton(path, manifest_sha256(shards))
    assert found["header"].dtype == beton_format.HEADER_DTYPE
    assert found["field_descriptors"].dtype == beton_format.FIELD_DTYPE
    assert found["allocations"].dtype == beton_format.ALLOCATION_DTYPE
    named = found["rows"].view(beton_format.ROW_DTYPE)  # ffcv gives its columns no names
    assert named["label"].tolist() == found["rows"]["f1"].tolist()
    assert found["rows"].tolist() == tables.rows.tolist()
    assert found["allocations"].tolist() == tables.allocations.tolist()
    counts = {name: split.num_samples for name, split in read_manifest(shards).splits.items()}
    assert dict(record.splits) == counts
    assert (record.encoding, list(record.splits)) == (encoding, ["train", "val"])


@each_encoding
def test_the_same_shard_set_gives_the_same_bytes(
    ffcv: FfcvProcess, tmp_path: Path, betons: dict[str, tuple[Path, Path]], encoding: str
) -> None:
    shards, path = betons[encoding]
    again = ffcv.write_beton(shards, tmp_path / "again.beton")
    assert again.read_bytes() == path.read_bytes()


@each_encoding
@pytest.mark.parametrize("column", ["label", "mode", "data_ptr", "sample_id", "size"])
def test_rows_that_are_not_the_shard_sets_are_noticed(
    betons: dict[str, tuple[Path, Path]], encoding: str, column: str
) -> None:
    shards, path = betons[encoding]
    samples = ShardSamples(shards, read_manifest(shards))
    tables = map_tables(path)
    rows, allocations = np.array(tables.rows), np.array(tables.allocations)
    changed = dataclasses.replace(tables, rows=rows, allocations=allocations)
    check_tables(path, changed, samples)
    holders = (rows, rows["image"], allocations)
    values = next(holder[column] for holder in holders if column in (holder.dtype.names or ()))
    values[-1] ^= 1
    with pytest.raises(ConversionError, match="wrote other samples than it was given"):
        check_tables(path, changed, samples)


def test_images_that_do_not_fit_into_a_usual_page(
    ffcv: FfcvProcess, tmp_path: Path, large: Path
) -> None:
    found = ffcv.load(ffcv.write_beton(large, tmp_path / "large.beton"))
    assert found["page_size"] == 1 << 24
    images, labels = read_tars(large)
    assert np.array_equal(found["images"], images)
    assert found["labels"].tolist() == labels


@given(image_bytes=st.integers(1, 1 << 30))
def test_a_page_holds_the_largest_image(image_bytes: int) -> None:
    page_bytes = choose_page_bytes(image_bytes)
    assert page_bytes >= max(image_bytes, 1 << 23)
    assert page_bytes.bit_count() == 1
    assert page_bytes == 1 << 23 or page_bytes < 2 * image_bytes


def test_an_image_too_large_for_any_page_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"largest image has 1073741825 bytes; .* 1073741824"):
        choose_page_bytes((1 << 30) + 1)


def start_held(ffcv: FfcvProcess, shards: Path, path: Path, method: str = "__getitem__") -> Job:
    """A writer that holds still in the middle of its samples, or where it checks them."""
    folder = held_of(path)
    folder.mkdir()
    job = ffcv.start_beton(shards, path, held=str(folder), method=method, after=30)  # of 85
    wait_until(lambda: (folder / "held").exists() or job.poll() is not None)
    assert job.poll() is None
    return job


def held_of(path: Path) -> Path:
    return path.parent.with_name("held")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that nothing else is in."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def temporary_of(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")


def is_written(path: Path) -> bool:
    """Whether ffcv's writer is through, and what it wrote is being checked."""
    size = beton_format.HEADER_DTYPE.itemsize
    start = temporary_of(path).read_bytes()[:size]
    header = np.frombuffer(start if len(start) == size else b"", beton_format.HEADER_DTYPE)
    return bool(header["alloc_table_ptr"].any())


@pytest.mark.parametrize("method", ["__getitem__", "check"])
def test_a_killed_writer_leaves_nothing_under_the_name(
    ffcv: FfcvProcess,
    out: Path,
    betons: dict[str, tuple[Path, Path]],
    method: str,
) -> None:
    shards, undisturbed = betons["rgb"]
    path = out / "out.beton"
    job = start_held(ffcv, shards, path, method)
    assert is_written(path) == (method == "check")
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    assert not path.exists()
    ffcv.write_beton(shards, path)
    assert path.read_bytes() == undisturbed.read_bytes()
    assert names_in(out) == ["out.beton"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_is_one_sentence(
    ffcv: FfcvProcess, out: Path, synthetic: Path, stop: signal.Signals
) -> None:
    path = out / "out.beton"
    job = start_held(ffcv, synthetic, path)
    assert temporary_of(path).stat().st_size > 0
    os.kill(job.pid, stop)
    outcome = job.wait()
    assert (outcome.code, outcome.errors) == (
        130,
        f"error: stopped; {path} was not written; the same command starts over\n",
    )
    assert names_in(out) == []


@pytest.mark.parametrize(
    "max_file_bytes",
    [
        1_000,  # in the header
        20_000_000,  # in the first page
        60_000_000,  # in the last page, which ffcv does not notice
        67_108_900,  # in the table behind the pages
    ],
)
def test_full_disk_is_one_sentence(
    ffcv: FfcvProcess, tmp_path: Path, large: Path, max_file_bytes: int
) -> None:
    path = tmp_path / "out.beton"
    outcome = ffcv.start_beton(large, path, max_file_bytes=max_file_bytes).wait()
    assert (outcome.code, outcome.errors) == (
        1,
        f"error: {path}: File too large; once that is mended, run the same command again\n",
    )
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        (0, "not a JPEG: "),  # noticed when it is read
        (300, "its image is not the one that was written (CRC-32)"),  # when it is read back
    ],
)
def test_damaged_shard_is_named(
    ffcv: FfcvProcess, tmp_path: Path, jpegs: Path, at: int, sentence: str
) -> None:
    shards = copy_tree(jpegs, tmp_path / "shards")
    split = read_manifest(shards).split("val")
    offset = int(np.load(shards / split.index_filename)[3]["offset"])
    with (shards / split.filenames[0]).open("r+b") as file:
        file.seek(offset + at)
        file.write(b"\xa5\xa5")
    outcome = ffcv.start_beton(shards, tmp_path / "out.beton").wait()
    assert outcome.code == 1
    assert outcome.errors.count("\n") == 1
    assert f"shard {shards}/val-000000.tar, at byte {offset}: {sentence}" in outcome.errors
    assert names_in(tmp_path) == ["shards"]


def test_shorter_shard_is_named(tmp_path: Path, jpegs: Path) -> None:
    shards = copy_tree(jpegs, tmp_path / "shards")
    os.truncate(shards / "train-000001.tar", 1000)
    result = run_cli("beton", shards, tmp_path / "out.beton")
    assert result.returncode == 1
    assert f"error: shard {shards}/train-000001.tar has 1000 bytes; expected" in result.stderr


def test_two_writers_of_one_file_are_refused(ffcv: FfcvProcess, out: Path, synthetic: Path) -> None:
    path = out / "out.beton"
    first = start_held(ffcv, synthetic, path)
    second = ffcv.start_beton(synthetic, path).wait()
    assert (second.code, second.errors) == (
        1,
        f"error: another process is writing {path}: wait for it\n",
    )
    (held_of(path) / "go-on").touch()
    assert first.wait().code == 0
    assert map_tables(path).rows.shape == (85,)


def test_a_finished_file_is_kept(betons: dict[str, tuple[Path, Path]]) -> None:
    shards, path = betons["jpeg"]
    before, content = path.stat(), path.read_bytes()
    result = run_cli("beton", shards, path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(" bytes (complete already)\n")
    after = path.stat()  # but the time of reading may be another
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["foreign", "other"])
def test_another_file_is_never_overwritten(
    tmp_path: Path, betons: dict[str, tuple[Path, Path]], name: str
) -> None:
    path = tmp_path / "out.beton"
    path.write_bytes(betons["rgb"][1].read_bytes() if name == "foreign" else b"precious")
    before = path.read_bytes()
    shards = betons["jpeg"][0]
    result = run_cli("beton", shards, path)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: {path} is there already and is not the .beton of {shards}: delete it"
    )
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == before


def test_without_ffcv_it_says_what_to_install(tmp_path: Path, synthetic: Path) -> None:
    (tmp_path / "ffcv").mkdir()
    reason = "libopencv_core.so.406: cannot open shared object file"
    (tmp_path / "ffcv/__init__.py").write_text(f"raise ImportError('{reason}')")
    path = tmp_path / "out.beton"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = run_cli("beton", synthetic, path, env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: writing a .beton needs ffcv, which does not load ({reason}): 'make "
        "ffcv' installs it, as does on Debian 'apt install g++ "
    )
    assert names_in(tmp_path) == ["ffcv"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none/out.beton", "none/.tmp-out.beton: No such file or directory"),
        (".", ": Is a directory"),
    ],
)
def test_a_path_that_cannot_be_written(
    tmp_path: Path, synthetic: Path, path: str, sentence: str
) -> None:
    result = run_cli("beton", synthetic, tmp_path / path)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
