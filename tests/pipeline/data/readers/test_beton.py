"""Finding the images in a `.beton`: the same bytes as in the tars, and what is refused."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.convert.conversion import convert
from data_prep.convert.options import Options
from data_prep.shard_set import beton_format
from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import (
    Encoding,
    ShardSetError,
    manifest_sha256,
    read_manifest,
)
from data_prep.sources.folder import open_folder
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers.open import open_beton_index
from pipeline.data.readers.sample_index import SampleIndex
from tests.data_prep.raw_data import ENCODINGS
from tests.ffcv_process import FfcvProcess
from tests.pipeline.fake_run import make_images, write_shard_set

pytestmark = pytest.mark.ffcv

IMAGENET = Path(__file__).parents[5] / "shared/data/imagenet-sample.tar"
LABELS = np.arange(50) * 7 % 10


@dataclass(frozen=True, slots=True)
class Pair:
    """A shard set and its `.beton`."""

    shards: Path
    path: Path

    def open(self, split: str = "val") -> AbstractContextManager[SampleIndex]:
        return open_index(self.path, self.shards, split)


@contextlib.contextmanager
def open_index(path: Path, shards: Path, split: str) -> Iterator[SampleIndex]:
    index = open_beton_index(path, ShardSet(shards, read_manifest(shards), None), split)
    with contextlib.closing(index.files):
        yield index


@pytest.fixture(scope="module", params=(*ENCODINGS, "yuv420"))
def pair(
    request: pytest.FixtureRequest, ffcv: FfcvProcess, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """50 images of 16×16, only the split `val`."""
    encoding: Encoding = request.param
    folder = tmp_path_factory.mktemp(encoding)
    names = [f"class-{label}" for label in range(10)]
    write_shard_set(folder / "shards", make_images(LABELS), LABELS, names, encoding, 20)
    path = ffcv.write_beton(folder / "shards", folder / "out.beton")
    return Pair(folder / "shards", path)


@pytest.fixture(scope="module")
def imagenet(ffcv: FfcvProcess, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Real JPEGs as they are, no two of one size: 30 + 10."""
    if not IMAGENET.exists():
        pytest.skip(f"{IMAGENET} is not there")
    folder = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(IMAGENET) as tar:
        for number, member in enumerate(tar):
            if number == 40:
                break
            file = tar.extractfile(member)
            assert file is not None
            target = folder / "raw" / ("train" if number < 30 else "val") / f"class-{number % 10}"
            target.mkdir(parents=True, exist_ok=True)
            (target / Path(member.name).name).write_bytes(file.read())
    options = Options(
        shards=folder / "shards",
        samples_per_shard=12,
        seed=3,
        workers=1,
        max_reject_ratio=0,
    )
    with (folder / "log").open("w") as log:
        convert(open_folder(folder / "raw"), options, log)
    path = ffcv.write_beton(folder / "shards", folder / "out.beton")
    return Pair(folder / "shards", path)


def assert_same_bytes(pair: Pair, split_name: str) -> None:
    """Compare all samples with what the index of the tars leads to."""
    manifest = read_manifest(pair.shards)
    split = manifest.split(split_name)
    index = read_index(pair.shards, split)
    samples = np.random.default_rng(0).permutation(split.num_samples)
    with pair.open(split_name) as beton:
        rows = beton.rows[samples]
        assert len(beton.rows) == split.num_samples
        assert beton.encoding == manifest.encoding
        assert np.array_equal(rows["label"], index["label"][samples])
    content = pair.path.read_bytes()
    for sample, (_, offset, num_bytes, _) in zip(samples, rows.tolist(), strict=True):
        shard, at, length, _ = index[sample].tolist()
        with (pair.shards / split.filenames[shard]).open("rb") as file:
            member = os.pread(file.fileno(), length, at)
        if manifest.encoding != "jpeg":  # the pixels of an .npy are its last bytes
            assert num_bytes == 16 * 16 * 3 // (2 if manifest.encoding == "yuv420" else 1)
            member = member[-num_bytes:]
        assert content[offset : offset + num_bytes] == member


@pytest.mark.slow
def test_every_row_holds_the_bytes_of_the_tar(pair: Pair) -> None:
    assert_same_bytes(pair, "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_row_holds_the_bytes_of_the_tar_of_real_images(imagenet: Pair, split: str) -> None:
    assert read_manifest(imagenet.shards).image_height is None
    assert_same_bytes(imagenet, split)


def test_rows_are_known_though_the_file_is_cut(pair: Pair, tmp_path: Path) -> None:
    """Images are then missing, which is damage; the table behind them is not needed any more."""
    path = tmp_path / "cut.beton"
    path.write_bytes(pair.path.read_bytes())
    samples = np.arange(len(LABELS))
    with open_index(path, pair.shards, "val") as beton:
        expected = beton.rows[samples]
        os.truncate(path, 4096)
        assert np.array_equal(beton.rows[samples], expected)
        assert beton.rows["label"].tolist() == LABELS.tolist()


def test_unknown_split_is_named(pair: Pair) -> None:
    with pytest.raises(ShardSetError, match="no split 'train': it has val"):
        pair.open("train").__enter__()


def test_missing_file_says_how_to_make_it(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "none.beton"
    sentence = f"{path} is missing: make it with 'python -m data_prep beton SHARDS {path}'"
    with pytest.raises(ShardSetError, match=sentence):
        open_index(path, pair.shards, "val").__enter__()


def test_file_of_another_shard_set_is_refused(pair: Pair, tmp_path: Path) -> None:
    names = [f"class-{label}" for label in range(10)]
    write_shard_set(tmp_path / "other", 255 - make_images(LABELS), LABELS, names, "rgb", 20)
    sentence = f"is of another shard set: .* sha256 {manifest_sha256(pair.shards)}, expected"
    with pytest.raises(ShardSetError, match=sentence):
        open_index(pair.path, tmp_path / "other", "val").__enter__()


def test_folder_is_refused(pair: Pair) -> None:
    with pytest.raises(IsADirectoryError):
        open_index(pair.shards, pair.shards, "val").__enter__()


def cut(size: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:size]


def overwrite(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + new + content[at + len(new) :]


RECORD = beton_format.RECORD_OFFSET


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut(0), "is not a .beton of images and labels"),
        (cut(100), "is not a .beton of images and labels"),
        (cut(10_000), "has 10000 bytes; expected 1677"),
        (cut(9_000_000), "has 9000000 bytes; expected 1677"),
        (cut(-1), "bytes; expected 1677.* copy it again"),
        (lambda content: content + b"\0", "bytes; expected 1677.* copy it again"),
        (lambda content: bytes(len(content)), "is not a .beton of images and labels"),
        (lambda content: b"\xff\xd8" + content[2:], "is not a .beton of images and labels"),
        (overwrite(8, bytes(8)), "is not a .beton of images and labels"),  # no sample
        (overwrite(16, bytes(8)), "was not finished, its writer was stopped"),
        (overwrite(RECORD, bytes(1024)), "does not say of which shard set it is: it was not fin"),
        (overwrite(RECORD, b"["), "has a damaged record"),
        (overwrite(RECORD, b"[]".ljust(1024, b"\0")), "has a damaged record"),
        (overwrite(RECORD, b"{}".ljust(1024, b"\0")), "has a damaged record"),
        (
            lambda content: content.replace(b'"record_version": 1', b'"record_version": 2'),
            "has record version 2; expected 1",
        ),
        (lambda content: content.replace(b'"val": 50', b'"val": 49'), "do not match their hash"),
    ],
)
def test_damaged_file_is_refused(
    pair: Pair, tmp_path: Path, damage: Callable[[bytes], bytes], sentence: str
) -> None:
    path = tmp_path / "damaged.beton"
    path.write_bytes(damage(pair.path.read_bytes()))
    with pytest.raises(ShardSetError, match=sentence) as error:
        open_index(path, pair.shards, "val").__enter__()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@given(data=st.data())
def test_any_wrong_byte_outside_the_images_is_refused(pair: Pair, data: st.DataObject) -> None:
    tables = beton_format.map_tables(pair.path)
    parts = {
        "header": (0, 24),
        "record": (RECORD, len(pair.path.read_bytes()[RECORD : RECORD + 1024].rstrip(b"\0"))),
        "rows": (beton_format.ROWS_OFFSET, tables.rows.nbytes),
        "allocations": (tables.num_bytes - tables.allocations.nbytes, tables.allocations.nbytes),
    }
    start, num_bytes = parts[data.draw(st.sampled_from(sorted(parts)))]
    at = start + data.draw(st.integers(0, num_bytes - 1))
    flip = data.draw(st.integers(1, 255))
    with pair.path.open("r+b", buffering=0) as file:
        before = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([before[0] ^ flip]), at)
        try:
            with pytest.raises(ShardSetError), pair.open():
                pass
        finally:
            os.pwrite(file.fileno(), before, at)
    with pair.open():
        pass
