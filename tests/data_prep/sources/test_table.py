"""The source `table`: CSV, TSV and Parquet with paths and labels, as programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.source import Source, SourceError
from data_prep.sources.table import TableColumns, open_table
from tests.data_prep.raw_data import jpeg, run_cli

FILES = ("a.jpg", "b,c.jpg", "sub/d.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed=number))
    (tmp_path / "images/loop").symlink_to("loop")
    return tmp_path / "images"


def opened(
    root: Path,
    content: str | bytes,
    name: str = "table.csv",
    columns: TableColumns = TableColumns(),  # noqa: B008
    **options: Any,
) -> Source:
    table = root.parent / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(table, root, columns, **options)


def rows_of(source: Source) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(sample.locator, source.class_names[sample.label]) for sample in samples]
        for split, samples in source.splits.items()
    }


@pytest.mark.parametrize(
    "content",
    [
        'path,label\na.jpg,cat\n"b,c.jpg",dog\n',
        '\ufeffpath,label\r\na.jpg,cat\r\n"b,c.jpg",dog\r\n',
        'Label,Filename,note\ncat,a.jpg,"two\nlines"\ndog,"b,c.jpg",\n\n',
        '"path","label"\n"a.jpg","cat"\n"b,c.jpg"," dog "\n',
    ],
)
def test_tables_as_programs_write_them(root: Path, content: str) -> None:
    assert rows_of(opened(root, content)) == {"train": [("a.jpg", "cat"), ("b,c.jpg", "dog")]}


def test_tabs_and_splits(root: Path) -> None:
    content = "image\tclass\tsplit\na.jpg\t0\ttrain\nb,c.jpg\t1\tTEST\nsub/d.jpg\t1\ttraining\n"
    source = opened(root, content, "t.tsv")
    assert rows_of(source) == {
        "train": [("a.jpg", "0"), ("sub/d.jpg", "1")],
        "val": [("b,c.jpg", "1")],
    }


def test_semicolons_as_excel_writes_them(root: Path) -> None:
    source = opened(root, "\ufeffpath;label\r\na.jpg;cat, small\r\nb,c.jpg;dog\r\n")
    assert rows_of(source) == {"train": [("a.jpg", "cat, small"), ("b,c.jpg", "dog")]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_as_excel_writes_it(root: Path, encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    content = f"{mark}path\tlabel\r\na.jpg\tkočka\r\n".encode(encoding)
    assert rows_of(opened(root, content, "t.txt")) == {"train": [("a.jpg", "kočka")]}


def test_labels_of_thousands_of_digits_are_texts(root: Path) -> None:
    assert opened(root, f"path,label\na.jpg,{'9' * 5000}\n").class_names == ("9" * 5000,)


def test_a_parquet_table(root: Path) -> None:
    table = root.parent / "t.parquet"
    pq.write_table(pa.table({"file_name": ["a.jpg", "sub/d.jpg"], "label": [1, 0]}), table)
    source = open_table(table, root, TableColumns())
    assert rows_of(source) == {"train": [("a.jpg", "1"), ("sub/d.jpg", "0")]}


def test_columns_by_name(root: Path) -> None:
    content = "where,what,label\na.jpg,cat,9\n"
    source = opened(root, content, columns=TableColumns(path="where", label="what"))
    assert rows_of(source) == {"train": [("a.jpg", "cat")]}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("path,label\nb.jpg,cat\n", r"1 of 1 files .* are not below .*\(b.jpg\)"),
        ("path,label\na.jpg\n", "row 2 has 1 columns; expected 2"),
        ("path,label\na.jpg,cat\nb,c.jpg,dog\n", "row 3 has 3 columns"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "lists 1 paths twice"),
        ("path,label\n", "has no rows"),
        ("", "has no column 'path'"),
        ("path,kind\na.jpg,cat\n", "'path, kind': name that of the labels with --label-column"),
        ("path,label\na.jpg,\n", "row 2: the path or the label is empty"),
        ('path,label\n"a.jpg,cat\n', "unexpected end of data"),
        ('path,"label\na.jpg,cat\n', "unexpected end of data"),
        ("path,label\na\0.jpg,cat\n", "row 2: the path or the label is empty, or no text"),
        (f"path,label\n{'a' * 300}.jpg,cat\n", "are not below"),
        ("path,label\nloop,cat\n", "are not below"),
        ("path,label,split\na.jpg,cat,dev\n", "row 2: the split is 'dev'"),
        (
            "path,label\n../t.csv,cat\n",
            r"1 paths .* lead out of .* \(\.\./t\.csv\).*--allow-outside",
        ),
        ("path,label\n/etc/hosts,cat\n", "lead out of"),
        ("path,label\na.jpg,1\nsub/d.jpg,2\n", "--first-label 1"),
        (b"path,label\na.jpg,\xff\n", "expected a CSV or TSV file in UTF-8"),
        (b"PAR1\0\0", "expected a CSV|has no column"),
    ],
)
def test_tables_that_are_not_right(root: Path, content: str | bytes, what: str) -> None:
    with pytest.raises(SourceError, match=what) as raised:
        opened(root, content)
    assert "\n" not in str(raised.value)


def test_links_that_lead_out_of_the_root_are_refused_unless_asked_for(root: Path) -> None:
    (root.parent / "secret.jpg").write_bytes(jpeg())
    (root / "link.jpg").symlink_to("../secret.jpg")
    with pytest.raises(SourceError, match="lead out of"):
        opened(root, "path,label\nlink.jpg,cat\n")
    source = opened(root, "path,label\nlink.jpg,cat\n", outside=True)
    assert rows_of(source) == {"train": [("link.jpg", "cat")]}


@pytest.mark.slow
def test_a_shard_set_is_made_of_a_table(root: Path) -> None:
    table = root / "labels.csv"
    table.write_text('path,label,split\na.jpg,cat,train\n"b,c.jpg",dog,train\nsub/d.jpg,cat,val\n')
    done = run_cli("shard", "table", "--input", table, "--output", root.parent / "shards")
    assert done.returncode == 0, done.stderr
    assert "2 train + 1 val samples of 2 classes" in done.stdout
