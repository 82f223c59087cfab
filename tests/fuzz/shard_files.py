"""Fuzzers of the files of a shard set, of other programs' tars, and of what a conversion keeps."""

from __future__ import annotations

import functools
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.adopt.tar_record import find_record, read_tar
from data_prep.convert.output import ConversionError, begun_plan
from data_prep.shard_set.beton_format import BetonRecord, map_tables, open_beton, write_record
from data_prep.shard_set.codec import codec_of, plain_jpeg_size
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.foreign import WORK_FOLDER
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError, walk_files, walk_samples
from data_prep.shard_set.index import read_checksums, read_index, read_mean_image
from data_prep.shard_set.jpeg_header import DamagedJpegError, jpeg_size
from data_prep.shard_set.manifest import (
    MANIFEST_NAME,
    Encoding,
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
from tests.data_prep.shard_set.fuzz.corpus import make_corpus
from tests.data_prep.sources.test_parquet import no_progress
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_json, change_tar, inside_tar, inside_zip, pack_tar

FORMATS = Path(__file__).parents[1] / "formats/v1"
SHARD_SETS = FORMATS / "shards"
_ENCODINGS: dict[str, Encoding] = {"jpeg": "jpeg", "pixels": "rgb", "planes": "yuv420"}

_SAMPLES = [
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
    return [pack_tar(_SAMPLES, form) for form in forms] + [
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
            expect(member.num_bytes == tarfile.nti(header[124:136]), header)  # type: ignore[attr-defined]
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
                _adapt(shards)
            _use(shards)
        finally:
            for each in (name, MANIFEST_NAME):
                (shards / each).write_bytes(whole[each])

    return Target(corpus, read)


def _adapt(shards: Path) -> None:
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


def _members(name: str, suffix: str) -> list[bytes]:
    with tarfile.open(SHARD_SETS / name / "train-000000.tar") as archive:
        files = [archive.extractfile(each) for each in archive if each.name.endswith(suffix)]
        return [file.read() for file in files if file is not None]


def _image(name: str, _folder: Path) -> Target:
    """Members of tars: a whole image of the stated size, or an error."""
    codec = codec_of(_ENCODINGS[name])

    def read(content: bytes) -> None:
        pixels = codec.decode(content)
        expect(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape)
        expect(codec.size_of(content) == pixels.shape[:2], "its size is another one")

    return Target(_members(name, codec.suffix), read)


def _jpeg_header(_folder: Path) -> Target:
    def read(content: bytes) -> None:
        size = plain_jpeg_size(content)
        found = jpeg_size(content)
        expect(size in (None, found), f"{size} and {found}")
        expect(all(0 < side < 1 << 16 for side in found), found)

    return Target([content for content in make_corpus() if _has_size(content)], read)


def _has_size(content: bytes) -> bool:
    try:
        return bool(jpeg_size(content))
    except DamagedJpegError:
        return False


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
    path.write_bytes(pack_tar(_SAMPLES))
    read_tar(path, FieldNames()).save(record_path)

    def read(content: bytes) -> None:
        record_path.write_bytes(content)
        if (record := find_record(path, record_path)) is not None:
            check_types(record, type(record))
            lengths = {len(each) for each in (record.index, record.checksums, record.labels)}
            expect(lengths == {len(record.sizes)}, f"a record of parts {lengths}")

    return Target([record_path.read_bytes()], read)


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
    Harness(name="pixels", prepare=functools.partial(_image, "pixels"), errors=(ValueError,)),
    Harness(name="planes", prepare=functools.partial(_image, "planes"), errors=(ValueError,)),
    Harness(name="jpeg-header", prepare=_jpeg_header, errors=(DamagedJpegError,)),
    Harness(
        name="conversion-plan",
        prepare=_conversion_plan,
        errors=(ConversionError,),
        changes=(change_json,),
    ),
    Harness(name="record", prepare=_record, errors=(), changes=(inside_zip((change_json,)),)),
)
