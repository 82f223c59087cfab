"""The shard set on disk: the one contract between `data_prep` and `pipeline`.

    SHARDS/
      train-000000.tar …  val-000000.tar …   WebDataset tars
      train.index.npy  val.index.npy         one row a sample, see `INDEX_DTYPE`
      train.crc32.npy  val.crc32.npy         one checksum a sample: `verify` names what is damaged
      train.mean.npy                         the mean image, when all have one size
      _info.json                             the manifest, written last: without it no shard set

`splits.<name>.{name, num_samples, filenames, shard_lengths}` in the manifest are the schema of
timm's WebDataset reader, so timm and plain webdataset read our shards unchanged; the rest is ours.
Longer than 250 lines: what a manifest says, and each check of it, is read together.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from data_prep.shard_set.files import sha256_of, write_atomically
from data_prep.shard_set.foreign import describe_manifest, describe_path, describe_unfinished
from data_prep.shard_set.typed import check_types, read_json

MANIFEST_NAME = "_info.json"
FORMAT_VERSION = 1

WrittenEncoding = Literal["jpeg", "rgb", "yuv420"]
"""Those that a conversion writes."""
Encoding = Literal[WrittenEncoding, "image"]
"""See `data_prep.shard_set.codec`, which says what each is; `image` is of adopted shards."""
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
ADOPTED = "adopted"
"""The source of shards that other programs wrote, and that are read as they are."""
LABEL_SUFFIX = "cls"
"""Name ending of a label's tar member."""

_SOURCE_TITLES: Mapping[str, str] = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "synthetic": "generated shapes",
}
"""What people call a data set whose source is known; images in folders can be any."""

_MAX_NAME_LENGTH = 80
_MAKE = "make one with 'python -m data_prep shard'"


class ShardSetError(ValueError):
    """A shard set is missing, incomplete, damaged, or not the one that was meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split of a shard set; the tuples run in shard order."""

    name: str
    num_samples: int
    filenames: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    """Samples in each shard."""
    shard_bytes: tuple[int, ...]
    shard_sha256: tuple[str, ...]
    index_filename: str
    index_sha256: str
    checksums_filename: str | None = None
    """An .npy of uint32[num_samples]: the CRC-32 of each image member, in the index's order."""
    checksums_sha256: str | None = None
    folder: str | None = None
    """Of shards that were adopted where they lie, an absolute path; None: beside the manifest."""

    def shard_paths(self, shards: Path) -> list[Path]:
        """Where the shards of the set in the folder `shards` lie."""
        folder = shards if self.folder is None else Path(self.folder)
        return [folder / name for name in self.filenames]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Colour statistics of the train split over all its pixels, RGB order, 0–255 scale.

    `pca_stds` are standard deviations along the components (2012 code), not eigenvalues;
    column `i` of `pca_vectors` (3×3, row by row) is component `i`, by ascending deviation.
    """

    num_images: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pca_stds: tuple[float, float, float]
    pca_vectors: tuple[tuple[float, float, float], ...]
    mean_image_filename: str | None = None
    """An .npy of float32 H×W×3 beside the manifest, or None when image sizes differ."""
    mean_image_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a shard set holds and where it came from."""

    format_version: int
    encoding: Encoding
    image_height: int | None
    """Rows of every image; None when sizes differ."""
    image_width: int | None
    class_names: tuple[str, ...]
    """In label order."""
    class_names_sha256: str
    splits: Mapping[str, Split]
    statistics: Statistics
    source: str
    options: Mapping[str, str | int | float | None]
    seed: int
    rewritten: Mapping[str, int]
    """Images converted, counted by reason."""
    rejected: Mapping[str, int]
    """Images left out, counted by reason."""
    name: str | None = None
    """What its maker calls the shard set, `--name`; it changes no other file."""

    @property
    def title(self) -> str:
        """The name of the shard set in reports."""
        if self.name is not None:
            return self.name
        return _SOURCE_TITLES.get(self.source, f"{self.num_classes} classes of images")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of every image, or None if they differ in size."""
        if self.image_height is None or self.image_width is None:
            return None
        return self.image_height, self.image_width

    def split(self, name: str) -> Split:
        """The split called `name`; raises `ShardSetError` naming the splits there are."""
        if name not in self.splits:
            known = ", ".join(sorted(self.splits))
            raise ShardSetError(f"the shard set has no split '{name}': it has {known}")
        return self.splits[name]


def check_name(name: str) -> str:
    """Return the `name` of a shard set; raises `ValueError` if it does not fit on a line."""
    is_line = isinstance(name, str) and name.isprintable() and name == name.strip()
    if not is_line or not 0 < len(name) <= _MAX_NAME_LENGTH:
        raise ValueError(
            f"the name of a shard set is {name!r}; expected 1 to {_MAX_NAME_LENGTH} printable "
            "characters, without spaces around them"
        )
    return name


def hash_class_names(names: tuple[str, ...]) -> str:
    """Hash that changes when any class is renamed or moved to another label."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def serialize(manifest: Manifest) -> bytes:
    """The content of the manifest's file."""
    fields = asdict(manifest)
    for split in fields["splits"].values():
        if split["folder"] is None:  # shards beside it: older versions read that, too
            del split["folder"]
    text = json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def write_manifest(shards: Path, manifest: Manifest) -> None:
    """Publish the shard set: after this rename it exists, before it does not."""
    write_atomically(shards / MANIFEST_NAME, serialize(manifest))


def manifest_sha256(shards: Path) -> str:
    """Hash of the manifest; through the hashes in it, of the whole shard set."""
    return sha256_of(shards / MANIFEST_NAME)


def read_manifest(shards: Path) -> Manifest:
    """Read and check `SHARDS/_info.json`.

    Raises `ShardSetError` if it is missing, is not a manifest, is of another format version or
    contradicts itself.
    """
    path = shards / MANIFEST_NAME
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        if (unfinished := describe_unfinished(shards)) is not None:
            raise ShardSetError(unfinished) from None
        what = describe_path(shards) if shards.exists() else None
        raise ShardSetError(
            f"{shards} is not a shard set: it has no {MANIFEST_NAME}; "
            + (what or f"{_MAKE}, or rerun the conversion that was stopped")
        ) from None
    except NotADirectoryError:
        what = describe_path(shards)
        hint = f": it seems to be {what}" if what else ""
        raise ShardSetError(
            f"{shards} is a file; expected the folder of a shard set{hint}"
        ) from None


def parse_manifest(content: bytes, path: str) -> Manifest:
    """The manifest in `content`, which errors call `path`; raises `ShardSetError`, see above."""
    fields = parse_json(content, path)
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version is None:
        what = describe_manifest(fields) or f"of another program; {_MAKE}"
        raise ShardSetError(f"{path} is not the manifest of a shard set: it is {what}")
    if version != FORMAT_VERSION:
        raise ShardSetError(
            f"{path} has format version {version}; expected {FORMAT_VERSION}: use the version of "
            "this program that made it, or convert again"
        )
    try:
        splits = {name: Split(**as_tuples(split)) for name, split in fields.pop("splits").items()}
        statistics = Statistics(**as_tuples(fields.pop("statistics")))
        manifest = Manifest(**as_tuples(fields), splits=splits, statistics=statistics)
        check_types(manifest, Manifest, "")
        _check_consistent(manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise ShardSetError(f"{path} is not a manifest ({error}): convert the data again") from None
    except ValueError as error:
        raise ShardSetError(f"{path}: {error}; convert the data again") from None
    return manifest


def parse_json(content: bytes, path: str) -> Any:
    """The content of a JSON file; raises `ShardSetError` if it is damaged."""
    try:
        return read_json(content)
    except ValueError as error:
        raise ShardSetError(f"{path} is damaged ({error}): convert the data again") from None


def _check_consistent(manifest: Manifest) -> None:
    if hash_class_names(manifest.class_names) != manifest.class_names_sha256:
        raise ValueError("class_names do not match their hash")
    serialize(manifest)  # else a text is none that a file could hold
    if manifest.name is not None:
        check_name(manifest.name)
    names = [MANIFEST_NAME, manifest.statistics.mean_image_filename]
    for split in manifest.splits.values():
        names += [*split.filenames, split.index_filename, split.checksums_filename]
        by_shard = (split.filenames, split.shard_lengths, split.shard_bytes, split.shard_sha256)
        are_counts = min((0, *split.shard_lengths, *split.shard_bytes)) == 0
        is_total = are_counts and sum(split.shard_lengths) == split.num_samples
        if len(set(map(len, by_shard))) != 1 or not is_total:
            raise ValueError(f"the numbers of split '{split.name}' contradict each other")
    for name, uses in Counter(name for name in names if name is not None).items():
        path = PurePath(name)
        is_below = manifest.source == ADOPTED and not path.is_absolute() and ".." not in path.parts
        if uses > 1 or not name or not (is_below or (path.name == name and name[0] != ".")):
            raise ValueError(f"it names the file '{name}'; expected one of its own beside it")


def as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples our frozen records hold."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return value
