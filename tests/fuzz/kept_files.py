"""Fuzzers of what a conversion keeps for itself: plans, records, stamps, unpacked images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.adopt.tar_record import find_record, read_tar
from data_prep.convert import shard
from data_prep.convert.assignment import ShardName
from data_prep.convert.changes import load_stamps, save_stamps
from data_prep.convert.output import ConversionError, begun_plan, record_path
from data_prep.convert.shard import ShardContents, ShardJob, write_shard
from data_prep.shard_set.foreign import WORK_FOLDER
from data_prep.shard_set.foreign_tar import FieldNames
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.sources.parquet import open_parquet
from data_prep.sources.samples import Sample
from data_prep.sources.source import FileReader
from tests.data_prep.raw_data import jpeg
from tests.data_prep.sources.test_parquet import CONTENTS, no_progress, write_parquet
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_bytes, change_json, inside_zip, pack_tar
from tests.fuzz.packed_mutation import change_array
from tests.fuzz.shard_files import FORMATS, SAMPLES


def _conversion_plan(folder: Path) -> Target:
    work = folder / WORK_FOLDER
    work.mkdir()
    whole = (FORMATS / "begun/.conversion/settings.json").read_bytes()

    def read(content: bytes) -> None:
        (work / "settings.json").write_bytes(content)
        plan = begun_plan(folder)
        check_types(plan, type(plan))

    return Target([whole], read)


def _record(folder: Path) -> Target:
    """Of a tar that was adopted: a record that is damaged is no record."""
    path, record_path = folder / "x.tar", folder / "x.npz"
    path.write_bytes(pack_tar(SAMPLES))
    read_tar(path, FieldNames()).save(record_path)

    def read(content: bytes) -> None:
        record_path.write_bytes(content)
        if (record := find_record(path, record_path)) is not None:
            check_types(record, type(record))
            lengths = {len(each) for each in (record.index, record.checksums, record.labels)}
            expect(lengths == {len(record.sizes)}, f"a record of parts {lengths}")

    return Target([record_path.read_bytes()], read)


def _shard_record(folder: Path) -> Target:
    """Of a finished shard: a record that is damaged is none, and the shard is written again."""
    (folder / WORK_FOLDER).mkdir()
    (folder / "x.jpg").write_bytes(jpeg())
    name = ShardName("train", 0)
    job = ShardJob(FileReader(folder), folder, "jpeg", None, None, 0)
    write_shard(name, [Sample("x", 0, "x.jpg")], job, lambda _reason: None)
    path = record_path(folder, name)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if (record := shard.find_record(folder, name)) is not None:
            check_types((record.num_bytes, record.sha256), tuple[int, str])
            expect(len(record.index) == len(record.checksums), "a record of parts")
            expect(record.index.dtype == INDEX_DTYPE, record.index.dtype)
            ShardContents().merge(record.contents)

    return Target([path.read_bytes()], read)


def _input_stamps(folder: Path) -> Target:
    """Of a finished set: either those of each sample, or none."""
    shards, sha256 = folder / "shards", "0" * 64
    rows = {ShardName("train", 0): np.arange(3), ShardName("val", 0): np.arange(2)}
    save_stamps(shards, sha256, [np.arange(3, dtype=np.uint64), np.arange(2, dtype=np.uint64)])
    path = folder / "shards.inputs.npz"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if stamps := load_stamps(shards, sha256, rows):
            expect(stamps.keys() == rows.keys(), f"stamps of {[*stamps]}")
            for name, found in stamps.items():
                expect(found.dtype == np.uint64 and found.shape == rows[name].shape, found)

    return Target([path.read_bytes()], read)


def _unpacked(folder: Path) -> Target:
    """Where each image of a Parquet file begins, of which a hash tells what is whole."""
    write_parquet(folder / "in/train.parquet", CONTENTS[:3], [0, 1, 1])
    source = open_parquet(folder / "in", folder / "unpacked")
    assert source.prepare is not None
    source.prepare(1, no_progress)
    path = folder / "unpacked/train.parquet.offsets"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for sample in source.pick("train", np.arange(3)):
            source.reader.read(sample)

    return Target([path.read_bytes()], read)


_INSIDE = inside_zip((change_array, change_array, change_bytes))

HARNESSES = (
    Harness(
        name="conversion-plan",
        prepare=_conversion_plan,
        errors=(ConversionError,),
        changes=(change_json,),
    ),
    Harness(name="record", prepare=_record, errors=(), changes=(_INSIDE,)),
    Harness(name="shard-record", prepare=_shard_record, errors=(), changes=(_INSIDE,)),
    Harness(name="input-stamps", prepare=_input_stamps, errors=(), changes=(_INSIDE,)),
    Harness(name="unpacked", prepare=_unpacked, errors=(OSError,)),
)
