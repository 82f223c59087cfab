"""Shard sets of tars that others wrote: they train, are verified, and the tars stay as they are."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.adopt import tar_record
from data_prep.adopt.adopt import Adoption, expand
from data_prep.adopt.adopt import adopt as run_adoption
from data_prep.convert.output import ConversionError
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.foreign import WORK_FOLDER
from data_prep.shard_set.foreign_tar import FieldNames
from data_prep.shard_set.index import read_checksums, read_index
from data_prep.shard_set.locks import locked
from data_prep.shard_set.manifest import ShardSetError, read_manifest
from data_prep.shard_set.pixels import decode_jpeg
from data_prep.sources.source import SourceError
from tests.data_prep.raw_data import hash_tree, jpeg, run_cli

NUM_PER_TAR = 10
HOW = Adoption(
    fields=FieldNames(),
    class_names=None,
    first_label=0,
    num_statistics=100,
    num_threads=1,
    name=None,
)


def write_tars(folder: Path, num_train: int = 3, num_val: int = 1, **fields: object) -> Path:
    """Tars as webdataset's own writer makes them, of images of two classes."""
    folder.mkdir(parents=True)
    for split, count in (("train", num_train), ("val", num_val)):
        pattern = str(folder / f"{split}-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=NUM_PER_TAR, verbose=0) as writer:
            for number in range(NUM_PER_TAR * count):
                seed = number + 1000 * (split == "val")
                content = fields.get("content") or jpeg(seed, 40 + number % 3)
                writer.write({"__key__": f"{number:06d}", "jpg": content, "cls": number // 3 % 2})
    return folder


def adopt(*arguments: object) -> str:
    done = run_cli("adopt", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_tars_are_adopted_and_stay_as_they_are(tmp_path: Path) -> None:
    tars, shards = write_tars(tmp_path / "tars"), tmp_path / "shards"
    before = hash_tree(tars)
    output = adopt(tars, "--output", shards)
    assert "30 train + 10 val samples of 2 classes in 4 shards" in output
    assert hash_tree(tars) == before
    manifest = read_manifest(shards)
    train = manifest.split("train")
    index, checksums = read_index(shards, train), read_checksums(shards, train)
    assert len(checksums) == len(index) == 30
    assert index["label"].tolist() == [number // 3 % 2 for number in range(30)]
    for row in (0, 17, 29):
        shard, offset, num_bytes, _ = index[row].tolist()
        content = train.shard_paths(shards)[shard].read_bytes()[offset : offset + num_bytes]
        assert content == jpeg(row, 40 + row % 3)
    expected = np.concatenate(
        [decode_jpeg(jpeg(number, 40 + number % 3)).reshape(-1, 3) for number in range(30)]
    )
    np.testing.assert_allclose(manifest.statistics.mean, expected.mean(0), rtol=1e-9)
    np.testing.assert_allclose(manifest.statistics.std, expected.std(0), rtol=1e-9)
    assert sorted(path.name for path in shards.iterdir()) == [
        "_info.json",
        *(f"{split}.{kind}.npy" for split in ("train", "val") for kind in ("crc32", "index")),
    ]


@pytest.mark.slow
def test_an_adopted_set_is_verified(tmp_path: Path) -> None:
    tars, shards = write_tars(tmp_path / "tars"), tmp_path / "shards"
    adopt(tars, "--output", shards)
    assert run_cli("verify", shards, "--full").returncode == 0
    path = tars / "train-000001.tar"
    content = bytearray(path.read_bytes())
    offset = read_index(shards, read_manifest(shards).split("train"))["offset"][10]
    content[int(offset) + 300] ^= 1
    path.write_bytes(content)
    done = run_cli("verify", shards, "--full")
    assert done.returncode == 1
    assert "train-000001.tar: key 000010: its image" in done.stdout


@pytest.mark.slow
def test_in_place_the_set_may_be_moved(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars")
    adopt(tars, "--in-place")
    tars.rename(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved").num_classes == 2
    assert run_cli("verify", tmp_path / "moved", "--full").returncode == 0


def test_patterns_and_names_of_classes(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    output = adopt(
        *(f"{tars}/train-{{000000..000001}}.tar", f"{tars}/val-000000.tar"),
        *("--output", tmp_path / "shards", "--class-names", names),
    )
    assert "20 train + 10 val" in output
    assert read_manifest(tmp_path / "shards").class_names == ("cat", "dog")


@pytest.mark.slow
def test_a_stopped_adoption_goes_on(tmp_path: Path) -> None:
    tars, shards = write_tars(tmp_path / "tars"), tmp_path / "shards"
    last = tars / "val-000000.tar"
    content = last.read_bytes()
    last.write_bytes(content[:5000])
    done = run_cli("adopt", tars, "--output", shards, "--workers", 1)
    assert done.returncode == 1
    assert "val-000000.tar is damaged" in done.stderr
    assert not (shards / "_info.json").exists()
    assert len(list((shards / ".adoption").glob("*.npz"))) == 3
    (shards / ".tmp-train.index.npy-01234567").touch()  # of one that was killed
    last.write_bytes(content)
    os.utime(tars / "train-000001.tar", ns=(1, 1))  # as if it were replaced
    adopt(tars, "--output", shards)
    assert read_manifest(shards).split("train").num_samples == 30
    assert not list(shards.glob(".*"))


@pytest.mark.slow
def test_a_stopped_adoption_goes_on_with_the_labels_that_are_asked_for(tmp_path: Path) -> None:
    tars, shards = tmp_path / "tars", tmp_path / "shards"
    tars.mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(tars / f"{split}-0.tar")) as writer:
            for number in range(4):
                fields = {"label": number % 2, "other": 1 - number % 2}
                writer.write({"__key__": f"{number}", "jpg": jpeg(number), "json": fields})
    content = (tars / "val-0.tar").read_bytes()
    (tars / "val-0.tar").write_bytes(content[:700])
    assert run_cli("adopt", tars, "--output", shards, "--workers", 1).returncode == 1
    (tars / "val-0.tar").write_bytes(content)
    adopt(tars, "--output", shards, "--label-field", "other")
    assert read_index(shards, read_manifest(shards).split("train"))["label"].tolist() == [1, 0] * 2


@pytest.mark.slow
def test_tars_in_hidden_folders_and_by_roundabout_paths(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 1)
    (tmp_path / ".val").mkdir()
    (tars / "val-000000.tar").rename(tmp_path / ".val" / "0.tar")
    (tars / "._train-000000.tar").write_bytes(b"of macOS")
    adopt(tars, f"{tars}/../.val/0.tar", "--output", tmp_path / "shards")
    assert run_cli("verify", tmp_path / "shards", "--full").returncode == 0


def test_nothing_is_written_for_tars_that_are_not_enough(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 1)
    (tars / "val-000000.tar").unlink()
    with pytest.raises(SourceError, match="no tar of the split val"):
        run_adoption(expand([str(tars)]), tmp_path / "shards", HOW, io.StringIO())
    assert not (tmp_path / "shards").exists()
    (tars / "train-000000.tar").rename(tars / "\udcff.tar")
    with pytest.raises(SourceError, match="not UTF-8"):
        expand([str(tars)])


def test_a_conversion_that_is_not_finished_is_not_adopted(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 1)
    (tars / WORK_FOLDER).mkdir()
    expected = f"{tars} is a conversion that is not finished: run the same '.* merge {tars}"
    with pytest.raises(SourceError, match=expected):
        run_adoption(expand([str(tars)]), tars, HOW, io.StringIO())
    with pytest.raises(ShardSetError, match=expected):
        read_manifest(tars)
    assert sorted(path.name for path in tars.iterdir()) == [
        *(WORK_FOLDER, "train-000000.tar", "val-000000.tar")
    ]


def test_two_adoptions_at_a_time_are_one_sentence(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", 1)
    (tars / ".adoption").mkdir()
    with locked(tars / ".adoption/lock"):
        done = run_cli("adopt", tars, "--in-place")
    assert done.returncode == 1
    assert done.stderr.startswith("error: another process holds")


@pytest.mark.slow
def test_tars_that_are_not_shuffled_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for split in ("train", "val"):
        with webdataset.TarWriter(str(folder / f"{split}-0.tar")) as writer:
            for number in range(40):
                label = {"label": number // 10}
                writer.write({"__key__": f"{number}", "jpg": jpeg(number), "json": label})
    output = adopt(folder, "--output", tmp_path / "shards")
    assert "train-0.tar is not shuffled" in output
    assert "--data.shuffle_shards" in output
    assert read_manifest(tmp_path / "shards").class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--in-place", "--output", "x"), "either --output SHARDS or --in-place"),
        ((), "either --output SHARDS or --in-place"),
    ],
)
def test_where_the_manifest_goes_must_be_said(
    tmp_path: Path, options: tuple[str, ...], what: str
) -> None:
    done = run_cli("adopt", write_tars(tmp_path / "tars"), *options)
    assert done.returncode == 1
    assert what in done.stderr


@pytest.mark.slow
def test_a_finished_adoption_is_found_and_another_one_refused(tmp_path: Path) -> None:
    tars, shards = write_tars(tmp_path / "tars"), tmp_path / "shards"
    adopt(tars, "--output", shards)
    before = hash_tree(shards)
    adopt(tars, "--output", shards)
    for options in (("--label-field", "cls"), ("--name", "x")):
        done = run_cli("adopt", tars, "--output", shards, *options)
        assert done.returncode == 1
        assert "of other tars or options" in done.stderr
    assert hash_tree(shards) == before
    (tars / "val-000000.tar").write_bytes(b"")
    assert "val-000000.tar has 0 bytes" in run_cli("adopt", tars, "--output", shards).stderr


def test_what_patterns_name_must_be_there_once(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars")
    with pytest.raises(SourceError, match=r"1 of 4 tars are missing \(.*train-000003"):
        expand([f"{tars}/train-{{000000..000003}}.tar"])
    with pytest.raises(SourceError, match="given twice"):
        expand([str(tars), f"{tars}/val-000000.tar"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match=r"has no files \*\.tar"):
        expand([str(empty)])


def test_a_tar_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies across the edges of pieces, and of images larger than a piece."""
    tar = write_tars(tmp_path / "tars") / "train-000000.tar"
    fields = FieldNames()
    whole = tar_record.read_tar(tar, fields)
    assert whole.sha256 == sha256_of(tar)
    for num_bytes in (700, 4096, 10_000):
        monkeypatch.setattr(tar_record, "_PIECE_BYTES", num_bytes)
        found = tar_record.read_tar(tar, fields)
        assert found.sha256 == whole.sha256
        assert found.checksums.tolist() == whole.checksums.tolist()
        assert found.sizes.tolist() == whole.sizes.tolist()


def test_a_manifest_of_timm_beside_the_tars_stays(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars")
    (tars / "_info.json").write_text('{"splits": {"train": {"filenames": ["a.tar"]}}}')
    before = hash_tree(tars)
    with pytest.raises(ConversionError, match=r"another program wrote.*--output .*/tars/alexnet"):
        run_adoption(expand([str(tars)]), tars, HOW, io.StringIO())
    assert hash_tree(tars) == before
    run_adoption(expand([str(tars)]), tars / "alexnet", HOW, io.StringIO())
    assert read_manifest(tars / "alexnet").num_classes == 2
