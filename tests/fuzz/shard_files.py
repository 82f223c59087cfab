"""Fuzzers of the files of a shard set, and of other programs' tars."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.adopt.tar_record import find_record, read_tar
from data_prep.shard_set.beton_format import BetonRecord, map_tables, open_beton, write_record
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError, walk_files, walk_samples
from data_prep.shard_set.index import read_checksums, read_index, read_mean_image
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardSetError,
    manifest_sha256,
    parse_manifest,
    read_manifest,
    serialize,
)
from data_prep.shard_set.tar_images import walk_images
from data_prep.shard_set.tar_walk import DamagedTarError, walk_tar
from data_prep.verify.verify import find_damages
from tests.data_prep.raw_data import jpeg
from tests.data_prep.sources.test_parquet import no_progress
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_json, change_tar, inside_tar, pack_tar

FORMATS = Path(__file__).parents[1] / "formats/v1"
SHARD_SETS = FORMATS / "shards"

SAMPLES = [
    ("0001.jpg", jpeg(1, 20, 30)),
    ("0001.cls", b"3"),
    ("a/0002.png", b"\x89PNG\r\n\x1a\n" + bytes(700)),
    ("a/0002.json", b'{"label": "dog", "more": [1, {"x": null}]}'),
    ("a/0003.input.JPEG", jpeg(2, 20, 30)),
    ("a/0003.cls.txt", b" cat \n"),
]
_LONG = [(f"{'folder/' * 30}0001.jpg", b"x" * 600), (f"{'folder/' * 30}0001.cls", b"0")]


def _tars() -> list[bytes]:
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [pack_tar(SAMPLES, form) for form in forms] + [
        _with_long_names(form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]


def _with_long_names(form: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:", format=form) as archive:
        for name, content in _LONG:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _tar(_folder: Path) -> Target:
    """Each header is walked; its checksum and size are compared with what `tarfile` reads."""

    def read(content: bytes) -> None:
        def read_at(num_bytes: int, offset: int) -> bytes:
            return content[offset : offset + num_bytes]

        place = 0
        for member in walk_tar(read_at, 0, len(content)):
            header = content[place : place + 512]
            expect(member.offset == place + 512, f"{member} is not where the last one ends")
            expect(tarfile.nti(header[148:156]) in tarfile.calc_chksums(header), header)  # type: ignore[attr-defined]
            size = 0 if member.type in b"123456" else tarfile.nti(header[124:136])  # type: ignore[attr-defined]
            expect(member.num_bytes == size, header)
            place = member.offset + -(-member.num_bytes // 512) * 512
        expect(not content[place:].strip(b"\0"), "there is more behind the end")

    return Target(_tars(), read)


def _samples(folder: Path) -> Target:
    """As raw data and as shards to adopt; each image lies within the file."""
    path, record_path = folder / "train-0.tar", folder / "record.npz"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            images = list(walk_images(path))
        except ForeignTarError:
            images = []
        samples = list(walk_samples(path, FieldNames()))
        for member in [*(each.image for each in samples), *(each.member for each in images)]:
            expect(0 <= member.offset <= member.offset + member.num_bytes <= len(content), member)
        check_types(tuple(sample.label for sample in samples), tuple[int | str, ...])
        with path.open("rb") as file:
            names = {each.name for each in walk_files(path, _reading(file))}
        expect(len(samples) <= len(names), "more samples than members")
        record = read_tar(path, FieldNames())
        expect(len(record.index) == len(record.labels) == len(samples), record)
        record.save(record_path)
        expect(find_record(path, record_path) is not None, "the record is not read back")

    return Target(_tars(), read)


def _reading(file: io.BufferedReader) -> Callable[[int, int], bytes]:
    def read(num_bytes: int, offset: int) -> bytes:
        file.seek(offset)
        return file.read(num_bytes)

    return read


def _manifests() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SHARD_SETS.glob(f"*/{MANIFEST_NAME}"))]


def _manifest(_folder: Path) -> Target:
    def read(content: bytes) -> None:
        manifest = parse_manifest(content, "x")
        check_types(manifest, Manifest)
        expect(parse_manifest(serialize(manifest), "x") == manifest, "it is another one once saved")
        expect(manifest.title.isprintable() and manifest.num_classes >= 0, manifest.title)

    return Target(_manifests(), read)


def _shard_set(folder: Path) -> Target:
    """Any file of a set, in which the manifest has the hashes and sizes of what is there now."""
    shards = folder / "shards"
    shutil.copytree(SHARD_SETS / "scaled", shards)
    names = sorted(path.name for path in shards.iterdir())
    whole = {name: (shards / name).read_bytes() for name in names}
    corpus = [bytes([number]) + whole[name] for number, name in enumerate(names)]

    def read(content: bytes) -> None:
        name = names[content[0] % len(names)] if content else names[0]
        (shards / name).write_bytes(content[1:])
        try:
            if name != MANIFEST_NAME:
                adapt(shards)
            _use(shards)
        finally:
            for each in (name, MANIFEST_NAME):
                (shards / each).write_bytes(whole[each])

    return Target(corpus, read)


def adapt(shards: Path) -> None:
    """Let the manifest have the hashes and sizes of the files."""
    fields = json.loads((shards / MANIFEST_NAME).read_bytes())
    for split in fields["splits"].values():
        for kind in ("index", "checksums"):
            split[f"{kind}_sha256"] = sha256_of(shards / split[f"{kind}_filename"])
        paths = [shards / name for name in split["filenames"]]
        split["shard_bytes"] = [path.stat().st_size for path in paths]
        split["shard_sha256"] = [sha256_of(path) for path in paths]
    mean = fields["statistics"]
    mean["mean_image_sha256"] = sha256_of(shards / mean["mean_image_filename"])
    (shards / MANIFEST_NAME).write_text(json.dumps(fields))


def _use(shards: Path) -> None:
    manifest = read_manifest(shards)
    damages = find_damages(shards, full=True, num_threads=1, show=no_progress)
    for damage in damages:
        expect(str(damage).isprintable(), f"a damage that is no line: {str(damage)!a}")
    for split in manifest.splits.values():
        index, checksums = read_index(shards, split), read_checksums(shards, split)
        expect(len(index) == len(checksums) == split.num_samples, "rows are missing")
        labels = index["label"]
        expect(damages or (labels < manifest.num_classes).all(), "labels of no class")
    image = read_mean_image(shards, manifest.statistics)
    expect(damages or image.shape == (40, 40, 3), f"the mean image is {image.shape}")


def _beton(folder: Path) -> Target:
    """Also with a record whose hash fits the damage, as another program may write it."""
    path = folder / "x.beton"
    shards = SHARD_SETS / "jpeg"
    sha256 = manifest_sha256(shards)
    whole = lzma.decompress((FORMATS / "jpeg.beton.xz").read_bytes())
    path.write_bytes(whole)
    record, tables = open_beton(path, sha256)
    splits = {name: split.num_samples for name, split in read_manifest(shards).splits.items()}

    def read(content: bytes) -> None:
        path.write_bytes(content[1:])
        if content[:1] == b"\1":
            found = map_tables(path)
            with path.open("r+b") as file:
                write_record(file, record, found)
        opened, found = open_beton(path, sha256)
        check_types(opened, BetonRecord)
        is_same = np.array_equal(found.rows, tables.rows)
        expect(content[:1] == b"\1" or is_same, "rows changed behind their hash")
        expect(opened.splits == splits, f"splits {opened.splits}")
        for name in splits:
            expect(opened.samples_of(name).stop <= len(found.rows), "samples without a row")

    return Target([b"\0" + whole, b"\1" + whole], read)


HARNESSES = (
    Harness(name="tar", prepare=_tar, errors=(DamagedTarError,), changes=(change_tar,)),
    Harness(
        name="samples",
        prepare=_samples,
        errors=(ForeignTarError,),
        changes=(change_tar, inside_tar((change_json,))),
    ),
    Harness(name="manifest", prepare=_manifest, errors=(ShardSetError,), changes=(change_json,)),
    Harness(name="shard-set", prepare=_shard_set, errors=(ShardSetError,)),
    Harness(name="beton", prepare=_beton, errors=(ShardSetError,)),
)
