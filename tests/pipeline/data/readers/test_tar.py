"""Reading tars by index: what is read, and what is said about damaged ones."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import resource
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.manifest import Encoding, Manifest, ShardSetError, read_manifest
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import evaluation_crop_policy
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers import open as readers
from pipeline.data.readers.file_reader import FileReader
from tests.data_prep.raw_data import ENCODINGS
from tests.pipeline.fake_run import encode, make_images, write_shard_set

NUM_SAMPLES = 50
SHARD_LENGTH = 20
LABELS = np.arange(NUM_SAMPLES) * 7 % 10
IMAGES = make_images(LABELS)


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> Encoding:
    chosen: Encoding = request.param
    return chosen


@pytest.fixture
def shards(tmp_path: Path, encoding: Encoding) -> Path:
    names = [f"class-{label}" for label in range(10)]
    write_shard_set(tmp_path / "shards", IMAGES, LABELS, names, encoding, SHARD_LENGTH)
    return tmp_path / "shards"


@pytest.fixture
def reader(shards: Path) -> Iterator[FileReader]:
    with opened_reader(shards) as opened:
        yield opened


def open_reader(
    shards: Path, num_threads: int = 2, manifest: Manifest | None = None, split: str = "val"
) -> FileReader:
    shard_set = ShardSet(shards, manifest or read_manifest(shards), None)
    crop_policy = evaluation_crop_policy(AugmentConfig(), shard_set.manifest.image_size)
    config = DataConfig(decode_threads=num_threads)
    return readers.open_reader(config, shard_set, split, crop_policy, max_corrupt=None, files=None)


def opened_reader(shards: Path, num_threads: int = 2) -> contextlib.closing[FileReader]:
    return contextlib.closing(open_reader(shards, num_threads))


def read(reader: FileReader, samples: list[int]) -> npt.NDArray[np.uint8]:
    images = np.zeros((len(samples), *reader.image_shape), np.uint8)
    reader.read(np.array(samples, np.int64), 0, images)
    return images


def stored(sample: int, encoding: Encoding) -> npt.NDArray[np.uint8]:
    """The pixels a decoder of another make finds in what was written for the sample."""
    content = io.BytesIO(encode(IMAGES[sample], encoding))
    return np.asarray(np.load(content) if encoding == "rgb" else Image.open(content))


def damage(shards: Path, sample: int, content: bytes, at: int = 0) -> None:
    """Overwrite a part of the sample's image member, as a failing disk would."""
    manifest = read_manifest(shards).split("val")
    entry = np.load(shards / manifest.index_filename)[sample]
    with (shards / manifest.filenames[entry["shard"]]).open("r+b") as file:
        file.seek(int(entry["offset"]) + at)
        file.write(content)


def reseal(shards: Path, sample: int) -> Manifest:
    """The manifest of a shard set in which the sample was so from the start."""
    manifest = read_manifest(shards)
    split = manifest.split("val")
    entry = np.load(shards / split.index_filename)[sample]
    content = (shards / split.filenames[entry["shard"]]).read_bytes()[int(entry["offset"]) :]
    checksums = np.load(shards / "val.crc32.npy")
    checksums[sample] = zlib.crc32(content[: int(entry["num_bytes"])])
    np.save(shards / "val.crc32.npy", checksums)
    sha256 = sha256_of(shards / "val.crc32.npy")
    return dataclasses.replace(
        manifest, splits={"val": dataclasses.replace(split, checksums_sha256=sha256)}
    )


@pytest.mark.parametrize("num_threads", [1, 2, 3, 64])
def test_any_samples_are_read_in_any_order(
    shards: Path, encoding: Encoding, num_threads: int
) -> None:
    samples = [49, 0, 19, 20, 39, 40, 7, 7, 0, 33, 21]
    with opened_reader(shards, num_threads) as reader:
        assert reader.num_samples == NUM_SAMPLES
        assert reader.image_shape == (16, 16, 3)
        images = read(reader, samples)
        assert np.array_equal(images, [stored(sample, encoding) for sample in samples])
        labels, *_ = reader.read(np.array(samples), 0, images)
    assert labels.dtype == np.int64
    assert labels.tolist() == LABELS[samples].tolist()


def test_rows_beyond_the_samples_are_left_alone(reader: FileReader) -> None:
    images = np.full((5, 16, 16, 3), 9, np.uint8)
    reader.read(np.array([1, 2, 3]), 0, images)
    assert np.all(images[3:] == 9)
    assert not np.any(np.all(images[:3] == 9, axis=(1, 2, 3)))


def test_no_samples_are_no_work(reader: FileReader) -> None:
    labels, cost, _ = reader.read(np.array([], np.int64), 0, np.zeros((2, 16, 16, 3), np.uint8))
    assert (len(labels), cost.num_samples, cost.num_bytes) == (0, 0, 0)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_only_the_bytes_of_the_samples_are_read(
    shards: Path, encoding: Encoding, num_threads: int
) -> None:
    """Of stored pixels twice: once whole, for the checksum, and then what is copied."""
    samples = [3, 45, 22]
    with opened_reader(shards, num_threads) as reader:
        images = np.zeros((3, 16, 16, 3), np.uint8)
        _, cost, _ = reader.read(np.array(samples), 0, images)
        _, again, _ = reader.read(np.array(samples), 0, images)
    assert cost.num_samples == again.num_samples == 3
    stored_bytes = sum(len(encode(IMAGES[sample], encoding)) for sample in samples)
    pixel_bytes = images.nbytes if encoding == "rgb" else 0
    assert cost.num_bytes == stored_bytes + pixel_bytes
    assert again.num_bytes == (pixel_bytes or stored_bytes)
    assert cost.read_seconds > 0
    assert (cost.decode_seconds > 0) == (encoding == "jpeg")


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "val-000001.tar").unlink()
    with pytest.raises(ShardSetError, match=r"val-000001\.tar is missing: copy it back"):
        open_reader(shards)


def test_a_cut_shard_is_named_with_its_sizes(shards: Path) -> None:
    path = shards / "val-000002.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1024)
    with pytest.raises(ShardSetError, match=rf"val-000002\.tar has {size - 1024} .* {size}: "):
        open_reader(shards)


def test_a_damaged_index_is_refused(shards: Path) -> None:
    index = shards / "val.index.npy"
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    with pytest.raises(ShardSetError, match=r"val\.index\.npy: its sha256 is not the one in _info"):
        open_reader(shards)


def test_a_missing_index_is_named(shards: Path) -> None:
    (shards / "val.index.npy").unlink()
    with pytest.raises(ShardSetError, match=r"val\.index\.npy: missing; copy it again or convert"):
        open_reader(shards)


def test_a_split_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(ShardSetError, match=r"no split 'train': it has val"):
        open_reader(shards, split="train")


def test_a_flipped_bit_is_blamed_on_shard_and_member(shards: Path, encoding: Encoding) -> None:
    start = encode(IMAGES[25], encoding)[0]
    damage(shards, 25, bytes([start ^ 0x10]))
    with opened_reader(shards) as reader, pytest.raises(ShardSetError) as error:
        read(reader, [0, 25, 26])
    suffix = "npy" if encoding == "rgb" else "jpg"
    sentence = str(error.value)
    assert f"val-000001.tar, member 000025.{suffix}: " in sentence
    assert f"verify {shards} --full" in sentence
    with opened_reader(shards) as reader:
        assert np.array_equal(read(reader, [24]), [stored(24, encoding)])


def test_the_first_damaged_sample_asked_for_is_the_one_named(shards: Path) -> None:
    for sample in (5, 30, 45):
        damage(shards, sample, bytes(64))
    with opened_reader(shards) as reader, pytest.raises(ShardSetError, match=r"member 000030"):
        read(reader, [1, 2, 30, 45, 5, 6])


@pytest.mark.parametrize("encoding", ["jpeg"])
def test_a_jpeg_cut_in_its_pixels_is_damaged(shards: Path, encoding: Encoding) -> None:
    length = len(encode(IMAGES[4], encoding))
    damage(shards, 4, bytes(length // 3), at=length - length // 3)
    with opened_reader(shards) as reader, pytest.raises(ShardSetError, match=r"member 000004\.jpg"):
        read(reader, [4])


def read_resealed(shards: Path, sample: int, match: str) -> None:
    manifest = reseal(shards, sample)
    with (
        contextlib.closing(open_reader(shards, manifest=manifest)) as reader,
        pytest.raises(ShardSetError, match=rf"member {sample:06d}.*{match}"),
    ):
        read(reader, [sample])


def test_an_image_of_another_size_is_refused(shards: Path, encoding: Encoding) -> None:
    """Height and width exchanged: it has as many pixels, and would be read as stripes."""
    damage(shards, 4, encode(np.zeros((8, 32, 3), np.uint8), encoding))
    read_resealed(shards, 4, "the image is 8×32; expected 16×16")


@pytest.mark.parametrize("encoding", ["jpeg"])
def test_a_jpeg_that_never_was_whole_is_refused(shards: Path, encoding: Encoding) -> None:
    length = len(encode(IMAGES[4], encoding))
    damage(shards, 4, bytes(length // 3), at=length - length // 3)
    read_resealed(shards, 4, "")


@pytest.mark.parametrize("encoding", ["rgb"])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((16, 16, 3), np.int8),
        np.asfortranarray(np.zeros((16, 16, 3), np.uint8)),
        np.zeros((16, 48), np.uint8),
    ],
    ids=["signed", "columns first", "flat"],
)
def test_an_npy_of_another_kind_is_refused(
    shards: Path, array: npt.NDArray[np.generic], encoding: Encoding
) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    assert len(buffer.getvalue()) == len(encode(IMAGES[4], encoding))
    damage(shards, 4, buffer.getvalue())
    read_resealed(shards, 4, r"expected uint8\[height, width, 3\], row by row")


@pytest.mark.parametrize("encoding", ["rgb"])
@pytest.mark.usefixtures("encoding")
def test_an_npy_with_bytes_to_spare_is_refused(shards: Path) -> None:
    """Its pixels are not its last bytes: they would be read shifted."""
    fields = b"{'descr': '|u1', 'fortran_order': False, 'shape': (16, 16, 3), }\n"
    header = b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields
    assert np.array_equal(np.load(io.BytesIO(header + bytes(768))), np.zeros((16, 16, 3)))
    damage(shards, 4, header)
    read_resealed(shards, 4, "row by row and nothing more")


def test_a_shard_cut_while_it_is_open_is_named(shards: Path, reader: FileReader) -> None:
    read(reader, [41])
    os.truncate(shards / "val-000002.tar", 0)
    with pytest.raises(ShardSetError, match=r"val-000002\.tar, at byte "):
        read(reader, [41])


def test_an_overwritten_header_is_not_taken_for_a_name(shards: Path) -> None:
    damage(shards, 4, b"\x1b[31m\xff" * 128, at=-512)
    with opened_reader(shards) as reader, pytest.raises(ShardSetError, match=r"at byte \d+: "):
        read(reader, [4])


def test_a_failing_disk_is_named_with_the_shard(
    reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ShardSetError, match=r"val-000000\.tar, at byte .*: .*Input/output error"):
        read(reader, [0])


def open_files() -> int:
    gc.collect()  # what another test left is not to be closed between two counts
    return len(list(Path("/proc/self/fd").iterdir()))


def test_close_gives_all_files_and_threads_back(shards: Path) -> None:
    files, threads = open_files(), set(threading.enumerate())
    reader = open_reader(shards)
    read(reader, [1, 2, 3])
    assert open_files() >= files + 3
    assert set(threading.enumerate()) - threads
    reader.close()
    reader.close()
    del reader  # and with it the mapped index
    assert open_files() == files
    assert set(threading.enumerate()) <= threads


def test_too_many_shards_for_the_limit_are_counted(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real_open = open_files(), os.open

    def open_two(path: Path, flags: int) -> int:
        if str(path).endswith("val-000002.tar"):
            raise OSError(24, "Too many open files", str(path))
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", open_two)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2, 2))
    with pytest.raises(
        ShardSetError, match=r"val-000002\.tar: Too many open files \(3 shards, limit .* 2\)"
    ):
        open_reader(shards)
    assert open_files() == before


def test_a_manifest_of_other_shards_is_noticed(shards: Path) -> None:
    manifest: Manifest = read_manifest(shards)
    with (shards / "val.index.npy").open("wb") as file:
        np.save(file, np.zeros(NUM_SAMPLES, np.uint8))
    split = dataclasses.replace(
        manifest.split("val"), index_sha256=sha256_of(shards / "val.index.npy")
    )
    changed = dataclasses.replace(manifest, splits={"val": split})
    with pytest.raises(ShardSetError, match=r"holds uint8\[50\]; expected \[.*\]\[50\]"):
        open_reader(shards, manifest=changed)
