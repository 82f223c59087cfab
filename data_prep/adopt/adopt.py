"""Makes index, checksums and manifest of tars that others wrote; the tars are only read."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TextIO

import braceexpand
import numpy as np

from data_prep.adopt.contents import common_size, sum_pixels, warn_if_sorted
from data_prep.adopt.tar_record import TarRecord, find_record, read_tar, record_name
from data_prep.convert.output import ConversionError
from data_prep.convert.publish import publish_split
from data_prep.convert.statistics import summarize
from data_prep.shard_set.decoding import quiet
from data_prep.shard_set.fields import name_some
from data_prep.shard_set.files import as_text, remove_leftovers
from data_prep.shard_set.foreign import describe_unfinished
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError
from data_prep.shard_set.index import check_shard_sizes
from data_prep.shard_set.locks import locked
from data_prep.shard_set.manifest import (
    ADOPTED,
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardSetError,
    hash_class_names,
    read_manifest,
    write_manifest,
)
from data_prep.shard_set.progress import Progress
from data_prep.sources.labels import RawLabel, number_labels
from data_prep.sources.source import SourceError
from data_prep.sources.splits import by_split, find_files

_WORK_FOLDER = ".adoption"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """How tars are read."""

    fields: FieldNames
    class_names: tuple[str, ...] | None
    first_label: int
    num_statistics: int
    """Images of train that are decoded for the colour statistics."""
    num_threads: int
    name: str | None


def expand(patterns: Sequence[str]) -> list[Path]:
    """The tars that paths, folders and brace patterns such as `train-{000..146}.tar` name.

    Raises `SourceError` if one is missing, there twice, or a pattern is not right.
    """
    found: list[Path] = []
    for pattern in patterns:
        try:
            names = list(braceexpand.braceexpand(pattern))
        except ValueError as error:
            raise SourceError(f"the pattern {pattern!r} is not right: {error}") from None
        for path in map(Path, map(os.path.abspath, names)):  # without ..
            found += find_files(path, ".tar") if path.is_dir() else [path]
    if missing := [str(path) for path in found if not path.is_file()]:
        raise SourceError(f"{len(missing)} of {len(found)} tars are missing ({name_some(missing)})")
    if twice := [str(path) for path, count in Counter(found).items() if count > 1]:
        raise SourceError(f"tars are given twice ({name_some(twice)})")
    if odd := [ascii(str(path)) for path in found if as_text(str(path)) != str(path)]:
        raise SourceError(f"names of tars are not UTF-8 ({name_some(odd)}): rename them")
    return found


def common_folder(tars: Sequence[Path]) -> Path:
    """The deepest folder that all tars lie in, or below."""
    return Path(os.path.commonpath([path.parent for path in tars]))


def adopt(tars: Sequence[Path], shards: Path, how: Adoption, stream: TextIO) -> Manifest:
    """Make `shards` a shard set whose tars are these; killed, the same call goes on.

    Raises `SourceError` if tars cannot be used, and `ConversionError` if the folder holds another
    shard set.
    """
    for folder in sorted({path.parent for path in tars}):
        if (unfinished := describe_unfinished(folder)) is not None:
            raise SourceError(unfinished)
    root = common_folder(tars)
    splits = by_split(str(path.relative_to(root)) for path in tars)
    if missing := {"train", "val"} - set(splits):
        raise SourceError(
            f"no tar of the split {missing.pop()} is given; expected the word train, val or "
            "test in the name of each tar, or of its folder, and both splits"
        )
    if (finished := _find_finished(shards, splits, how)) is not None:
        return finished
    records_folder = shards / _WORK_FOLDER
    records_folder.mkdir(parents=True, exist_ok=True)
    with locked(records_folder / "lock"):
        files = (f"{split}.{kind}.npy" for split in splits for kind in ("index", "crc32"))
        remove_leftovers(shards, {*files, MANIFEST_NAME})
        records = _read_all(root, splits, records_folder, how, stream)
        manifest = _publish(root, shards, splits, records, how)
    for path in records_folder.iterdir():
        path.unlink()
    records_folder.rmdir()
    return manifest


def _find_finished(
    shards: Path, splits: Mapping[str, Sequence[str]], how: Adoption
) -> Manifest | None:
    """The manifest, if the same call has made it; raises `ConversionError` if another has."""
    if not (shards / MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_manifest(shards)
    except ShardSetError:
        raise ConversionError(
            f"{shards} has a {MANIFEST_NAME} that another program wrote, and it stays as it is: "
            f"give --output {shards / 'alexnet'}, or any other folder, instead of --in-place"
        ) from None
    names = {name: list(split.filenames) for name, split in manifest.splits.items()}
    made_by = manifest.source, manifest.options, manifest.name
    is_same = made_by == (ADOPTED, _options(how), how.name) and how.class_names in (
        None,
        manifest.class_names,
    )
    if is_same and names == {name: list(of_split) for name, of_split in splits.items()}:
        for split in manifest.splits.values():
            check_shard_sizes(shards, split)
        return manifest
    raise ConversionError(
        f"{shards} has a {MANIFEST_NAME} already, of other tars or options: give another --output, "
        "or remove that file"
    )


def _options(how: Adoption) -> dict[str, str | int | float | None]:
    return dataclasses.asdict(how.fields) | {"first_label": how.first_label}


def _read_all(
    root: Path,
    splits: Mapping[str, Sequence[str]],
    folder: Path,
    how: Adoption,
    stream: TextIO,
) -> dict[str, TarRecord]:
    """The record of each tar; those of an earlier call that was stopped are used again."""
    names = [name for of_split in splits.values() for name in of_split]
    paths = {name: folder / record_name(root / name, how.fields) for name in names}
    records = {name: record for name in names if (record := find_record(root / name, paths[name]))}
    missing = [name for name in names if name not in records]
    progress = Progress("reading", "tars", stream, num_before=len(records))

    def read(name: str) -> tuple[str, TarRecord]:
        record = read_tar(root / name, how.fields)
        record.save(paths[name])
        return name, record

    with quiet(), ThreadPoolExecutor(how.num_threads) as threads:
        jobs = [threads.submit(read, name) for name in missing]
        try:
            for job in as_completed(jobs):
                name, record = job.result()
                records[name] = record
                progress.show(len(records), len(names))
        except BaseException as error:
            threads.shutdown(cancel_futures=True)
            if isinstance(error, ForeignTarError):
                raise SourceError(str(error)) from None
            raise
        finally:
            progress.close()
    return records


def _publish(
    root: Path,
    shards: Path,
    names: Mapping[str, Sequence[str]],
    records: Mapping[str, TarRecord],
    how: Adoption,
) -> Manifest:
    raw: dict[str, list[RawLabel]] = {
        split: [label for name in of_split for label in records[name].labels]
        for split, of_split in names.items()
    }
    class_names, labels = number_labels(raw, how.class_names, "the set of tars", how.first_label)
    splits = {}
    for split, of_split in names.items():
        of_tars = {name: records[name] for name in of_split}
        stops = np.cumsum([len(record.index) for record in of_tars.values()]).tolist()
        for number, (record, stop) in enumerate(zip(of_tars.values(), stops, strict=True)):
            record.index["shard"] = number
            record.index["label"] = labels[split][stop - len(record.index) : stop]
        folder = None if root.resolve() == shards.resolve() else str(root)
        splits[split] = dataclasses.replace(publish_split(shards, split, of_tars), folder=folder)
    warn_if_sorted(names["train"], records, len(class_names))
    height, width = common_size(records.values())
    of_train = {root / name: records[name] for name in splits["train"].filenames}
    sums = sum_pixels(of_train, how.num_statistics, how.num_threads)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        encoding="jpeg" if all(record.is_plain for record in records.values()) else "image",
        image_height=height,
        image_width=width,
        class_names=class_names,
        class_names_sha256=hash_class_names(class_names),
        splits=splits,
        statistics=summarize(sums),
        source=ADOPTED,
        name=how.name,
        options=_options(how),
        seed=0,
        rewritten={},
        rejected={},
    )
    write_manifest(shards, manifest)
    return manifest
