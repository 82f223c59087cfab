"""The source `parquet`: the Hub's layout, labels and classes, and files that are not right."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.shard_set.manifest import read_manifest
from data_prep.sources import parquet_file
from data_prep.sources.parquet import open_parquet, read_columns
from data_prep.sources.source import Source, SourceError
from tests.data_prep.raw_data import jpeg, run_cli

CLASSES = ("cat", "dog")
CONTENTS = [jpeg(seed=number) for number in range(6)]


def write_parquet(
    path: Path,
    contents: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    classes: Sequence[str] | None = CLASSES,
    image: str = "image",
    label: str = "label",
    **options: Any,
) -> Path:
    """A file as the Hub's libraries write it."""
    images = pa.array(
        [None if each is None else {"bytes": each, "path": "x.jpg"} for each in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if classes is not None:
        features[label] = {"_type": "ClassLabel", "names": list(classes)}
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({image: images, label: pa.array(labels)}).replace_schema_metadata(info)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def write_hub(root: Path, **options: Any) -> Path:
    write_parquet(root / "data/train-00000-of-00002.parquet", CONTENTS[:2], [0, 1], **options)
    write_parquet(root / "data/train-00001-of-00002.parquet", CONTENTS[2:4], [1, 0], **options)
    write_parquet(root / "data/validation-00000-of-00001.parquet", CONTENTS[4:], [0, 1], **options)
    return root


def no_progress(num_done: int, num_files: int) -> None:
    """Shows nothing."""


def contents_of(source: Source, split: str) -> list[tuple[bytes, int]]:
    assert source.prepare is not None
    source.prepare(2, no_progress)
    samples = source.splits[split]
    return [(bytes(source.reader.read(sample)), sample.label) for sample in samples]


def test_the_layout_of_the_hub(tmp_path: Path) -> None:
    source = open_parquet(write_hub(tmp_path / "in"), tmp_path / "unpacked")
    assert source.class_names == CLASSES
    assert contents_of(source, "train") == list(zip(CONTENTS[:4], [0, 1, 1, 0], strict=True))
    assert contents_of(source, "val") == list(zip(CONTENTS[4:], [0, 1], strict=True))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_bytes_come_out_as_they_are_with_any_compression(tmp_path: Path, compression: str) -> None:
    root = write_hub(tmp_path / "in", compression=compression, row_group_size=1)
    source = open_parquet(root, tmp_path / "unpacked")
    assert [content for content, _ in contents_of(source, "train")] == CONTENTS[:4]


def test_a_file_that_would_fill_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_MOST_UNPACKED_BYTES", 1 << 16)
    contents = [bytes(1 << 16), bytes(range(256)) * 300]
    path = tmp_path / "train.parquet"
    write_parquet(path, contents, [0, 1], compression="zstd", use_dictionary=False)
    with pytest.raises(SourceError, match=r"unpacks from .* to 1\d\d,\d+ bytes in column 'im"):
        open_parquet(tmp_path, tmp_path / "unpacked")


@pytest.mark.slow
def test_a_shard_set_is_made_and_the_unpacked_copy_goes(tmp_path: Path) -> None:
    root, shards = write_hub(tmp_path / "in", image="img"), tmp_path / "shards"
    done = run_cli("shard", "parquet", "--input", root, "--output", shards)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(shards)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 4,
        "val": 2,
    }
    assert manifest.class_names == CLASSES
    assert not list(shards.glob(".conversion")) + list(tmp_path.glob("*unpacked*"))
    again = run_cli("shard", "parquet", "--input", root, "--output", shards)
    assert "complete already" in again.stdout


@pytest.mark.parametrize(
    ("labels", "classes", "what"),
    [
        ([0, 2], CLASSES, "label 2; expected 0 to 1"),
        ([1, 2], CLASSES, "--first-label 1"),
        ([-1, -1], CLASSES, "hidden"),
        ([0, None], CLASSES, "1 nulls among 2 labels"),
        ([0, 2], None, "but not 1"),
        ([0.5, 1.0], None, "expected whole numbers or class names"),
        ([0, 1], ("cat", "cat"), "a class name twice"),
    ],
)
def test_labels_that_are_not_right(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...] | None, what: str
) -> None:
    write_parquet(tmp_path / "train.parquet", CONTENTS[:2], labels, classes=classes)
    with pytest.raises(SourceError, match=what):
        open_parquet(tmp_path, tmp_path / "unpacked")


def test_texts_are_classes_in_their_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", CONTENTS[:3], ["dog", "ant", "dog"], classes=None)
    source = open_parquet(tmp_path, tmp_path / "unpacked")
    assert source.class_names == ("ant", "dog")
    assert [sample.label for sample in source.splits["train"]] == [1, 0, 1]


def test_categories_of_pandas_are_classes(tmp_path: Path) -> None:
    labels = pa.array(["dog", "ant"]).dictionary_encode()
    write_parquet(tmp_path / "train.parquet", CONTENTS[:2], labels, classes=None)
    assert open_parquet(tmp_path, tmp_path / "unpacked").class_names == ("ant", "dog")


def test_class_names_that_are_numbers_are_their_texts(tmp_path: Path) -> None:
    names: Any = (7, 8)
    write_parquet(tmp_path / "train.parquet", CONTENTS[:2], [0, 1], classes=names)
    assert open_parquet(tmp_path, tmp_path / "unpacked").class_names == ("7", "8")


def test_no_rows_are_one_sentence(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(SourceError, match="has no rows"):
        open_parquet(tmp_path, tmp_path / "unpacked")


@pytest.mark.slow
def test_a_conversion_goes_on_with_the_images_that_it_began_with(tmp_path: Path) -> None:
    shards, path = tmp_path / "shards", tmp_path / "in/train.parquet"
    write_parquet(path, [*CONTENTS[:3], None], [0, 1, 1, 0])
    command = ("shard", "parquet", "--input", path, "--output", shards, "--val-ratio", 0.5)
    assert "has a null" in run_cli(*command).stderr
    assert "image_column was None" in run_cli(*command, "--image-column", "image").stderr
    left = shards / ".conversion/unpacked/.tmp-train.parquet.images-0123"  # by a killed one
    left.touch()
    done = run_cli(*command)
    assert "has a null" in done.stderr
    assert not left.exists()


def test_labels_may_be_counted_from_1(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", CONTENTS[:2], [2, 1])
    source = open_parquet(tmp_path, tmp_path / "unpacked", first_label=1)
    assert [sample.label for sample in source.splits["train"]] == [1, 0]


def test_an_image_that_is_null_is_named_and_nothing_is_left_of_its_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "train.parquet", [CONTENTS[0], None], [0, 1])
    source = open_parquet(path, tmp_path / "unpacked")
    assert source.prepare is not None
    with pytest.raises(SourceError, match="has a null among the images of rows 0 to 1"):
        source.prepare(1, no_progress)
    assert [path.suffix for path in (tmp_path / "unpacked").iterdir()] == [".lock"]


def test_columns_of_other_names_are_listed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", CONTENTS[:2], [0, 1], image="photo", label="kind")
    with pytest.raises(SourceError, match=r"has 'photo, kind'.*--image-column"):
        open_parquet(tmp_path, tmp_path / "unpacked")
    source = open_parquet(
        tmp_path, tmp_path / "unpacked", image_column="photo", label_column="kind"
    )
    assert len(source.splits["train"]) == 2


def test_files_that_changed_are_unpacked_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "train.parquet", CONTENTS[:2], [0, 1])
    contents_of(open_parquet(path, tmp_path / "unpacked"), "train")
    write_parquet(path, CONTENTS[2:5], [1, 1, 0])
    found = contents_of(open_parquet(path, tmp_path / "unpacked"), "train")
    assert found == list(zip(CONTENTS[2:5], [1, 1, 0], strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_are_refused_or_read(tmp_path: Path, seed: int) -> None:
    """Bytes of a file are overwritten at random: one sentence, or images, never a crash."""
    path = write_parquet(tmp_path / "in" / "train.parquet", CONTENTS[:4], [0, 1, 1, 0])
    content = bytearray(path.read_bytes())
    dice = random.Random(seed)
    for _ in range(dice.choice([1, 30])):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(content[: dice.choice([len(content), dice.randrange(len(content))])])
    complaint = "train.parquet"
    try:
        source = open_parquet(path, tmp_path / "unpacked")
        assert source.prepare is not None
        source.prepare(1, no_progress)
    except SourceError as error:
        complaint = str(error)
    assert "train.parquet" in complaint
    assert "\n" not in complaint


ABORTING = zlib.decompress(
    base64.b85decode(
        "c-obbzfQw25XSF}i2`CsE6%c|3>k_Qq_m<)?UaR`q2djkDuPNa4Jm&XMn)ctp(6v2!?}tjL|O1~pXIyzeRuN"
        "g>Sj!mPDx+0Kp)_EfB@ips0gS}s^CmQ5k=_~a;!AEUXQa!ncyf94+IxvGzf&GgzjLczd1S%86AgO1^FMZ`%b"
        "2ufQ~lvyL#nF0?9L>4;L$UTX*-RtLh~vX;M>INa@5(AWBSEL_$gRs@~9+HvYMg@#6srKWxHMG9fY+BwKro44"
        "55%huNa~M7u@%j{jR}&+9xmsSgI*SbYh|v&OX#Pxa$)-ZVqkw(FPdxo$U$^?i0Z9bJsZrbq!&-^DI7{>g94B"
        "r+H"
    )
)
"""A file with one wrong byte in its footer, at which pyarrow 26 ends its process."""


def test_a_file_that_ends_the_process_is_refused_by_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "in/train-0.parquet", CONTENTS[:2], [0, 1])
    path = tmp_path / "in/train-1.parquet"
    path.write_bytes(ABORTING)
    with pytest.raises(SourceError, match=r"train-1\.parquet ended the process .*\(SIGABRT\)"):
        open_parquet(tmp_path / "in", tmp_path / "unpacked")
    with pytest.raises(SourceError, match=r"train-1\.parquet ended the process .*\(SIGABRT\)"):
        read_columns(path)
    assert capfd.readouterr().err == ""


def test_texts_that_are_no_texts_are_one_sentence(tmp_path: Path) -> None:
    names = pa.array([b"cat", b"do\xff"], pa.binary()).view(pa.string())
    path = write_parquet(tmp_path / "train.parquet", CONTENTS[:2], names, classes=None)
    for read in (lambda: open_parquet(path, tmp_path / "unpacked"), lambda: read_columns(path)):
        with pytest.raises(SourceError, match=r"train\.parquet cannot be read as Parquet .'utf-8'"):
            read()


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"] * 300_000), "label": pa.array([7] * 300_000)})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(SourceError, match=r"has 300,000 rows in [0-9,]+ bytes; expected an image"):
        open_parquet(tmp_path, tmp_path / "unpacked")


def test_tasks_that_unpack_at_once_unpack_each_file_once(tmp_path: Path) -> None:
    root, unpacked = write_hub(tmp_path / "in"), tmp_path / "unpacked"
    with ThreadPoolExecutor(3) as tasks:
        sources = [open_parquet(root, unpacked) for _ in range(3)]
        found = list(tasks.map(lambda source: contents_of(source, "train"), sources))
    assert found == [list(zip(CONTENTS[:4], [0, 1, 1, 0], strict=True))] * 3
    assert len(list(unpacked.glob("*.images"))) == 3
    assert not list(unpacked.glob(".tmp-*"))
