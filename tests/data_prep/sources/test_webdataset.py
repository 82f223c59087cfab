"""The source `webdataset`: tars of webdataset's own writer, of GNU tar, and what is refused."""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_prep.shard_set import foreign_tar
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError, walk_samples
from data_prep.sources.source import SourceError
from data_prep.sources.webdataset import open_webdataset
from tests.data_prep.raw_data import jpeg, run_cli

CONTENTS = [jpeg(seed=number) for number in range(6)]
USUAL = FieldNames()


def write_tar(
    path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def found_in(path: Path, fields: FieldNames = USUAL) -> list[tuple[str, bytes, int | str]]:
    content = path.read_bytes()
    return [
        (s.key, content[s.image.offset :][: s.image.num_bytes], s.label)
        for s in walk_samples(path, fields)
    ]


@pytest.mark.parametrize("fields", [{"cls": 3}, {"json": {"label": 3}}, {"cls.txt": b"3\n"}])
def test_tars_of_webdatasets_own_writer(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    path = tmp_path / "train-0.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number, content in enumerate(CONTENTS):
            writer.write({"__key__": f"folder/im{number}", "jpg": content, **fields})
    assert found_in(path) == [
        (f"folder/im{number}", content, 3) for number, content in enumerate(CONTENTS)
    ]


@pytest.mark.parametrize("format", ["gnu", "pax", "ustar", "v7"])
def test_tars_of_gnu_tar(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "in"
    deep = folder / ("x" * 60) / ("y" * 60) if format in ("gnu", "pax") else folder
    deep.mkdir(parents=True)
    for number, content in enumerate(CONTENTS):
        (deep / f"{number}.Input.JPG").write_bytes(content)
        (deep / f"{number}.cls").write_bytes(b"%d" % number)
    (deep / "notes").write_bytes(b"no sample")
    path = tmp_path / "train.tar"
    command = ["tar", f"--format={format}", "--sort=name", "-cf", path, "-C", folder, "."]
    subprocess.run([str(word) for word in command], check=True)
    prefix = f"{deep.relative_to(folder)}/".removeprefix("./")
    assert found_in(path) == [
        (f"{prefix}{number}", content, number) for number, content in enumerate(CONTENTS)
    ]


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "WebP", "image.jpg"])
def test_images_by_their_names(tmp_path: Path, suffix: str) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.cls", b"0"), (f"1.{suffix}", b"an image")])
    assert found_in(path) == [("1", b"an image", 0)]


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("a.jpg", b""), ("b.jpg", b"")], "sample a has no label"),
        ([("a.cls", b"1")], "sample a has no images"),
        ([("a.jpg", b""), ("a.png", b""), ("a.cls", b"1")], "sample a has 2 images"),
        ([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"1")], "sample a has no label"),
        ([("a.jpg", b""), ("a.cls", b"1"), ("b.jpg", b""), ("b.cls", b"1"), ("a.x", b"")], "twice"),
        ([("a.jpg", b""), ("a.jpg", b""), ("a.cls", b"1")], "two members .jpg"),
        ([("a.jpg", b""), ("a.cls", b"\0")], "its label is"),
        ([("a.jpg", b""), ("a.json", b"{")], "its .json is damaged"),
        ([("a.jpg", b""), ("a.json", b'{"kind": 1}')], "fields kind; expected 'label'"),
        ([("a.jpg", b""), ("a.json", b'{"label": [1]}')], "expected a whole number"),
        ([("notes", b"")], "holds no samples"),
    ],
)
def test_tars_that_cannot_be_used(
    tmp_path: Path, members: list[tuple[str, bytes]], what: str
) -> None:
    path = write_tar(tmp_path / "train-7.tar", members)
    with pytest.raises(ForeignTarError, match=what) as raised:
        found_in(path)
    assert "train-7.tar" in str(raised.value)


def with_pax(path: Path, records: bytes) -> Path:
    """Put a pax header with these records before what is in a tar."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    path.write_bytes(header.tobuf() + records + bytes(-len(records) % 512) + path.read_bytes())
    return path


def test_hostile_pax_headers(tmp_path: Path) -> None:
    members = [("a.jpg", CONTENTS[0]), ("a.cls", b"0")]
    digits = with_pax(write_tar(tmp_path / "a.tar", members), b"9" * 5000 + b" path=x\n")
    with pytest.raises(ForeignTarError, match="a pax header holds b'999"):
        found_in(digits)
    found_in(with_pax(write_tar(tmp_path / "b.tar", members), b"3 \n" * 340_000))


def test_many_records_of_a_pax_header_are_not_copied_again_and_again() -> None:
    """Else a header of a megabyte takes minutes: the square of the number of its records."""
    copied = [0]

    class Records(bytes):
        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            if isinstance(found, int):
                return found
            copied[0] += len(found)
            return Records(found)

    class Text(str):
        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            return Records(super().encode(encoding, errors))

    text = Text("3 \n" * 1000 + "9 path=x\n")
    assert foreign_tar._pax_path(Path("a.tar"), text) == "x"
    assert copied[0] <= len(text)


@pytest.mark.parametrize(
    "record",
    [
        *(b"27 GNU.sparse.size=1048576\n", b"40 GNU.sparse.map=499712,4096,1048576,0\n"),
        *(b"22 GNU.sparse.major=1\n", b"19 size=8589934592\n"),
    ],
)
def test_members_with_holes_are_refused(tmp_path: Path, record: bytes) -> None:
    """As GNU tar writes them by --sparse-version 0.0, 0.1 and 1.0."""
    path = write_tar(tmp_path / "a.tar", [("a.jpg", CONTENTS[0]), ("a.cls", b"0")])
    with pytest.raises(ForeignTarError, match=r"larger than 8 GiB or stored with holes"):
        found_in(with_pax(path, record))


def test_short_and_long_names_with_other_letters_are_one_sample(tmp_path: Path) -> None:
    """GNU tar keeps up to 100 bytes of a name in one place, and longer ones in another."""
    key = "é" * 47
    path = write_tar(tmp_path / "a.tar", [(f"{key}.jpg", CONTENTS[0]), (f"{key}.cls.txt", b"0")])
    assert found_in(path) == [(key, CONTENTS[0], 0)]


def test_compressed_tars_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ForeignTarError, match=r"compressed \(gzip\)"):
        found_in(path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_tars_end_in_one_sentence_or_in_samples(tmp_path: Path, seed: int) -> None:
    members = [
        (f"{'deep/' * 30 * (number % 2)}{number}.{kind}", content)
        for number in range(3)
        for kind, content in (("jpg", CONTENTS[number]), ("json", b'{"label": 1}'))
    ]
    path = write_tar(
        tmp_path / "a.tar", members, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[seed % 2]
    )
    content = bytearray(path.read_bytes())
    dice = random.Random(seed)
    for _ in range(dice.choice([1, 30])):
        place = dice.choice([dice.randrange(len(content)), dice.randrange(1024)])
        content[place] = dice.randrange(256)
    path.write_bytes(content[: dice.choice([len(content), dice.randrange(len(content))])])
    complaint = "a.tar"
    try:
        for sample in walk_samples(path, USUAL):
            assert sample.image.offset + sample.image.num_bytes <= len(content)
    except ForeignTarError as error:
        complaint = str(error)
    assert "a.tar" in complaint
    assert "\n" not in complaint


@pytest.mark.slow
def test_a_shard_set_is_made(tmp_path: Path) -> None:
    for split, contents in (("train", CONTENTS[:4]), ("val", CONTENTS[4:])):
        members = [
            each
            for number, content in enumerate(contents)
            for each in (
                (f"{number:05d}.jpg", content),
                (f"{number:05d}.json", json.dumps({"class": "ab"[number % 2]}).encode()),
            )
        ]
        write_tar(tmp_path / f"in/{split}/00000.tar", members)
    shards = tmp_path / "shards"
    done = run_cli(
        *("shard", "webdataset", "--input", tmp_path / "in", "--output", shards),
        *("--label-field", "class"),
    )
    assert done.returncode == 0, done.stderr
    assert "4 train + 2 val samples of 2 classes" in done.stdout


def test_what_is_wrong_is_said_by_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no files \*\.tar"):
        open_webdataset(tmp_path, USUAL, 2)
    write_tar(tmp_path / "train.tar", [("a.jpg", b"")])
    with pytest.raises(SourceError, match=r"has no files \*\.tar"):  # which is how it is read
        open_webdataset((tmp_path / "train.tar").rename(tmp_path / "train.wds"), USUAL, 2)
    (tmp_path / "train.wds").rename(tmp_path / "train.tar")
    with pytest.raises(SourceError, match="sample a has no label"):
        open_webdataset(tmp_path, USUAL, 2)
