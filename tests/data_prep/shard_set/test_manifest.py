"""What is in a shard set, and who can read it."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
from PIL import Image

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import Manifest, ShardSetError, read_manifest
from data_prep.sources.synthetic import make_synthetic
from tests.data_prep.raw_data import run_cli

SETS = ("synthetic", pytest.param("cifar10", marks=pytest.mark.slow))


@pytest.fixture(params=SETS)
def shards(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


def test_manifest_follows_the_schema_of_timm(shards: Path) -> None:
    info = json.loads((shards / "_info.json").read_bytes())
    for name in ("train", "val"):
        split = info["splits"][name]
        assert split["name"] == name
        assert split["filenames"] == sorted(path.name for path in shards.glob(f"{name}-*.tar"))
        assert len(split["shard_lengths"]) == len(split["filenames"])
        assert sum(split["shard_lengths"]) == split["num_samples"]
        assert all(isinstance(length, int) for length in split["shard_lengths"])


def test_only_the_named_files_are_there(shards: Path) -> None:
    manifest = read_manifest(shards)
    expected = {"_info.json", manifest.statistics.mean_image_filename}
    for split in manifest.splits.values():
        expected |= {*split.filenames, split.index_filename, split.checksums_filename}
    assert {path.name for path in shards.iterdir()} == expected


def read_all(shards: Path, split: str, *decoders: str) -> list[dict[str, Any]]:
    """Through plain webdataset, which leaves files to be closed when they are collected."""
    urls = [str(shards / name) for name in read_manifest(shards).split(split).filenames]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(*decoders))
        gc.collect()
    return samples


def test_webdataset_reads_the_pixels_of_rgb_shards(synthetic: Path) -> None:
    samples = read_all(synthetic, "val", "rgb8")
    source = make_synthetic(seed=0, size=32, num_train=0, num_val=25)
    expected = {sample.key: sample for sample in source.splits["val"]}
    assert {sample["__key__"] for sample in samples} == set(expected)
    for sample in samples:
        original = expected[sample["__key__"]]
        assert sample["cls"] == original.label
        np.testing.assert_array_equal(sample["npy"], source.reader.read(original))


@pytest.mark.parametrize("decoder", ["pil", "rgb8"])
def test_webdataset_reads_the_images_of_jpeg_shards(
    cifar10: Path, cifar10_folder: Path, decoder: str
) -> None:
    names = read_manifest(cifar10).class_names
    samples = read_all(cifar10, "train", decoder)
    assert Counter(sample["cls"] for sample in samples) == dict.fromkeys(range(10), 10)
    for sample in samples:
        class_name, number = sample["__key__"].split("_")
        assert names[sample["cls"]] == class_name
        original = Image.open(cifar10_folder / "train" / class_name / f"{number}.jpg")
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), np.asarray(original))


def test_honest_jpegs_are_stored_as_they_are(cifar10: Path, cifar10_folder: Path) -> None:
    manifest = read_manifest(cifar10)
    assert manifest.rewritten == {}
    assert manifest.rejected == {}
    with tarfile.open(cifar10 / "train-000000.tar") as archive:
        members = archive.getmembers()[::2]
        assert len(members) == manifest.split("train").shard_lengths[0]
        for member in members:
            class_name, number = Path(member.name).stem.split("_")
            original = cifar10_folder / "train" / class_name / f"{number}.jpg"
            content = archive.extractfile(member)
            assert content is not None
            assert content.read() == original.read_bytes()


def test_members_tell_nothing_of_when_and_by_whom(shards: Path) -> None:
    paths = sorted(shards.glob("*.tar"))
    assert len(paths) == 5
    for path in paths:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "", "", 0o644)
        }
        keys = [member.name.split(".")[0] for member in members]
        assert keys[::2] == keys[1::2]
        assert {member.name.split(".")[1] for member in members[1::2]} == {"cls"}


def images_by_index(shards: Path, split_name: str) -> list[npt.NDArray[np.uint8]]:
    manifest = read_manifest(shards)
    split = manifest.split(split_name)
    images = []
    for row in read_index(shards, split):
        with (shards / split.filenames[row["shard"]]).open("rb") as file:
            file.seek(int(row["offset"]))
            content = file.read(int(row["num_bytes"]))
        if manifest.encoding == "rgb":
            images.append(np.load(io.BytesIO(content)))
        else:
            images.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    return images


def test_index_leads_to_image_and_label(shards: Path) -> None:
    manifest = read_manifest(shards)
    suffix = {"rgb": "npy", "jpeg": "jpg"}[manifest.encoding]
    for name in ("train", "val"):
        by_webdataset = read_all(shards, name, "rgb8")
        labels = read_index(shards, manifest.split(name))["label"]
        assert labels.tolist() == [sample["cls"] for sample in by_webdataset]
        for image, sample in zip(images_by_index(shards, name), by_webdataset, strict=True):
            np.testing.assert_array_equal(image, sample[suffix])


def test_statistics_are_those_of_the_stored_train_images(shards: Path) -> None:
    statistics = read_manifest(shards).statistics
    images = np.array(images_by_index(shards, "train"), np.float64)
    pixels = images.reshape(-1, 3)
    assert statistics.num_images == len(images)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=0), rtol=1e-9)
    variances = np.linalg.eigvalsh(np.cov(pixels.T, bias=True))
    np.testing.assert_allclose(statistics.pca_stds, np.sqrt(variances), rtol=1e-7)
    assert statistics.mean_image_filename is not None
    mean_image = np.load(shards / statistics.mean_image_filename)
    assert mean_image.dtype == np.float32
    np.testing.assert_allclose(mean_image, images.mean(axis=0), rtol=1e-6)


def test_manifest_says_what_was_done(synthetic: Path, cifar10: Path) -> None:
    def facts(manifest: Manifest) -> tuple[object, ...]:
        lengths = [split.shard_lengths for split in manifest.splits.values()]
        size = (manifest.image_height, manifest.image_width)
        return manifest.source, manifest.encoding, manifest.seed, size, lengths

    assert facts(read_manifest(synthetic)) == (
        "synthetic", "rgb", 0, (32, 32), [(20, 20, 20), (20, 5)],
    )  # fmt: skip
    assert facts(read_manifest(cifar10)) == (
        "folder", "jpeg", 0, (32, 32), [(40, 40, 20), (40, 10)],
    )  # fmt: skip
    assert read_manifest(synthetic).options["samples_per_shard"] == 20


def test_title_is_the_name_or_that_of_a_known_source(synthetic: Path, cifar10: Path) -> None:
    assert read_manifest(synthetic).title == "generated shapes"
    folder = read_manifest(cifar10)
    assert folder.title == "10 classes of images"
    assert replace(folder, name="CIFAR-10 as JPEGs").title == "CIFAR-10 as JPEGs"


def test_manifest_from_before_there_were_names_is_read(synthetic: Path, tmp_path: Path) -> None:
    fields = json.loads((synthetic / "_info.json").read_bytes())
    assert fields.pop("name", "") is None
    (tmp_path / "_info.json").write_text(json.dumps(fields))
    assert read_manifest(tmp_path) == read_manifest(synthetic)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", " padded", "two\nlines", "x" * 81])
def test_name_that_does_not_fit_into_a_line_is_refused(
    synthetic: Path, tmp_path: Path, name: str
) -> None:
    fields = json.loads((synthetic / "_info.json").read_bytes()) | {"name": name}
    (tmp_path / "_info.json").write_text(json.dumps(fields))
    with pytest.raises(ShardSetError, match="the name of a shard set is"):
        read_manifest(tmp_path)
    assert run_cli("shard", "synthetic", "--output", tmp_path / "out", "--name", "").returncode == 2


def test_samples_are_shuffled(cifar10: Path) -> None:
    labels = read_index(cifar10, read_manifest(cifar10).split("train"))["label"].tolist()
    assert labels != sorted(labels)
