"""Subsets of a source, and a val split cut off train."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.manifest import read_manifest
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.selection import Selection, select
from data_prep.sources.source import FileReader, Source, SourceError
from tests.data_prep.raw_data import run_cli, write_folder

NAMES = ("ant", "bee", "cat", "dog")


def make_source(num_train: int = 8, num_val: int | None = 2) -> Source:
    def table(split: str, count: int) -> SampleTable:
        return SampleTable(
            Sample(f"{name}_{split}{number}", label, f"{name}/{number}")
            for label, name in enumerate(NAMES)
            for number in range(count)
        )

    splits = {"train": table("t", num_train)}
    if num_val is not None:
        splits["val"] = table("v", num_val)
    return Source(
        name="folder",
        class_names=NAMES,
        splits=splits,
        reader=FileReader(Path()),
        default_encoding="jpeg",
    )


VAL_ALONE = dataclasses.replace(make_source(), splits={"val": make_source().splits["val"]})


def classes_in(source: Source, split: str) -> set[tuple[str, str]]:
    """The name by its new label, beside the one in the key."""
    samples = source.splits[split]
    return {(source.class_names[sample.label], sample.key.partition("_")[0]) for sample in samples}


@pytest.mark.parametrize("classes", ["2", "ant,bee", "bee, ant"])
def test_classes_by_number_and_by_name(classes: str) -> None:
    source = select(make_source(), Selection(classes=classes))
    assert source.class_names == ("ant", "bee")
    assert classes_in(source, "train") == {("ant", "ant"), ("bee", "bee")}
    assert classes_in(source, "val") == {("ant", "ant"), ("bee", "bee")}


def test_classes_of_a_file_keep_the_order_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\r\nbee\r\n")
    source = select(make_source(), Selection(classes=str(tmp_path / "names.txt")))
    assert source.class_names == ("bee", "dog")
    assert classes_in(source, "train") == {("bee", "bee"), ("dog", "dog")}


def test_classes_are_joined_and_renamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "remap.csv"
    path.write_text("ant,insect\nbee,insect\ndog,mammal\n")
    source = select(make_source(), Selection(remap=path))
    assert source.class_names == ("insect", "mammal")
    assert classes_in(source, "train") == {("insect", "ant"), ("insect", "bee"), ("mammal", "dog")}
    assert "1 classes are left out" in caplog.text
    assert "cat" in caplog.text


@given(limit=st.integers(1, 10), seed=st.integers(0, 3))
def test_a_limit_is_one_of_each_class_of_train(limit: int, seed: int) -> None:
    source = select(make_source(), Selection(limit_per_class=limit, seed=seed))
    counts = Counter(sample.label for sample in source.splits["train"])
    assert counts == dict.fromkeys(range(4), min(limit, 8))
    assert len(source.splits["val"]) == 8
    fewer = select(make_source(), Selection(limit_per_class=max(1, limit - 1), seed=seed))
    assert set(fewer.splits["train"].keys()) <= set(source.splits["train"].keys())


@given(ratio=st.floats(0.01, 0.99), seed=st.integers(0, 3))
def test_a_val_split_has_each_class_and_stays_when_images_are_added(
    ratio: float, seed: int
) -> None:
    selection = Selection(val_ratio=ratio, seed=seed)
    few = select(make_source(100, None), selection).splits
    many = select(make_source(200, None), selection).splits
    assert set(Counter(sample.label for sample in few["val"])) == set(range(4))
    assert set(Counter(sample.label for sample in few["train"])) == set(range(4))
    assert not set(few["train"].keys()) & set(few["val"].keys())
    if min(Counter(sample.label for sample in few["val"]).values()) > 1:
        assert set(few["val"].keys()) <= set(many["val"].keys())
    # 400 draws: five standard deviations, and the one that each class has at least.
    assert len(few["val"]) == pytest.approx(
        400 * ratio, abs=5 * (400 * ratio * (1 - ratio)) ** 0.5 + 4
    )


@pytest.mark.parametrize(
    ("source", "options", "what"),
    [
        (make_source(8, None), {}, "cut one off train with --val-ratio"),
        (make_source(), {"val_ratio": 0.1}, "--val-ratio has no effect"),
        (make_source(1, None), {"val_ratio": 0.1}, "has one image"),
        (make_source(), {"classes": "5"}, "expected 1 to 4"),
        (make_source(), {"classes": "0"}, "expected 1 to 4"),
        (make_source(), {"classes": "ant,wolf"}, "1 of 2 are no classes.*wolf"),
        (make_source(), {"classes": "ant,ant"}, "a class name twice"),
        (make_source(), {"classes": ",".join(f"n{n:08}" for n in range(100))}, "100 of 100"),
        (VAL_ALONE, {}, "the split train of the input has no image"),
        (VAL_ALONE, {"limit_per_class": 1}, "the split train of the input has no image"),
    ],
)
def test_what_cannot_be_selected(source: Source, options: dict[str, Any], what: str) -> None:
    with pytest.raises(SourceError, match=what):
        select(source, Selection(**options))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ant", "expected a class and its new name"),
        ("ant,a\nant,b\n", "twice"),
        ("x,y", "not there"),
    ],
)
def test_remaps_that_are_not_right(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "remap.csv").write_text(text)
    with pytest.raises(SourceError, match=what):
        select(make_source(), Selection(remap=tmp_path / "remap.csv"))


@pytest.mark.slow
def test_the_manifest_says_what_was_taken(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "raw", 6, 1, ("ant", "bee", "cat")) / "train"
    options = ("--classes", "ant,cat", "--val-ratio", "0.3", "--limit-per-class", "2")
    command = ("shard", "folder", "--input", root, "--output", tmp_path / "shards", *options)
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.class_names == ("ant", "cat")
    assert manifest.splits["train"].num_samples == 4
    taken = {"classes": "ant,cat", "val_ratio": 0.3, "limit_per_class": 2}
    assert taken.items() <= dict(manifest.options).items()
    assert "complete already" in run_cli(*command).stdout
    other = run_cli(*command[:-1], "1")
    assert other.returncode == 1
    assert "limit_per_class" in other.stderr
