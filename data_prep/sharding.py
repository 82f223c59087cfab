"""The command `python -m data_prep shard SOURCE`: its sources, and the options that each adds."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.convert.conversion import convert
from data_prep.convert.options import Count, Options
from data_prep.shard_set.fields import within
from data_prep.shard_set.files import as_command
from data_prep.shard_set.foreign import WORK_FOLDER, describe_input
from data_prep.shard_set.foreign_tar import FieldNames
from data_prep.shard_set.manifest import Manifest
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from data_prep.sources.cifar import open_cifar10, open_cifar100
from data_prep.sources.folder import open_folder
from data_prep.sources.imagenet import NUM_CLASSES, open_imagenet
from data_prep.sources.labels import read_class_names
from data_prep.sources.parquet import open_parquet
from data_prep.sources.selection import Selection, select
from data_prep.sources.source import Source, SourceError
from data_prep.sources.synthetic import make_synthetic
from data_prep.sources.table import TableColumns, open_table
from data_prep.sources.webdataset import open_webdataset


@dataclass(frozen=True, kw_only=True)
class _Sharding(Options, Selection):
    @abstractmethod
    def open(self) -> Source:
        """The raw data."""

    def opened(self) -> Source:
        """The same."""
        return self.open()

    def run(self) -> int:
        begin, task = time.monotonic(), self.part
        source = select(self.opened(), self)
        manifest, num_shards, num_read = convert(source, self, sys.stderr)
        rate = num_read / (time.monotonic() - begin)
        made = f"{rate:,.0f} samples a second" if num_read else "complete already"
        if manifest is not None:
            say(summary(manifest, made, self.shards))
        else:
            merging = as_command("python", "-m", "data_prep", "merge", self.shards)
            say(
                f"{self.shards}: {task} has written its shards, {num_shards} in all ({made}); "
                f"after the last task run: {merging}"
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class _Reading(_Sharding):
    """The options of every source that reads files."""

    input: Annotated[Path, Named("--input", "PATH")]
    """The raw data: a folder, or what the source says."""
    ignore_changes: bool = False
    """Keep finished shards though images in them were replaced since."""

    def opened(self) -> Source:
        """The raw data; an error also says what the input is, if another source reads that."""
        try:
            return self.open()
        except SourceError as error:
            (name,) = (name for name, kind in SOURCES.items() if kind is type(self))
            if (found := describe_input(self.input, name)) is None:
                raise
            raise SourceError(f"{error}; of {self.input}: {found}") from None


@dataclass(frozen=True, kw_only=True)
class Folder(_Reading):
    """Convert images in train/CLASS/* and val/CLASS/*, or in another layout of class folders."""

    nested: bool = False
    """Images in folders below that of a class belong to the class, too."""

    def open(self) -> Source:
        return open_folder(self.input, nested=self.nested)


@dataclass(frozen=True, kw_only=True)
class _Labelled(_Reading):
    """The options of sources whose labels are numbers or names."""

    class_names: Path | None = None
    """A file with the class names in label order, one a line."""
    first_label: Annotated[int, within(0, 1)] = 0
    """The number of the first class."""

    def names(self) -> tuple[str, ...] | None:
        return None if self.class_names is None else read_class_names(self.class_names)


@dataclass(frozen=True, kw_only=True)
class Parquet(_Labelled):
    """Convert images in Parquet files, as on the Hugging Face Hub."""

    image_column: str | None = None
    """The column of images; if not given, one of the usual names."""
    label_column: str | None = None
    """The column of labels; if not given, one of the usual names."""

    def open(self) -> Source:
        return open_parquet(
            self.input,
            self.shards / WORK_FOLDER / "unpacked",
            image_column=self.image_column,
            label_column=self.label_column,
            class_names=self.names(),
            first_label=self.first_label,
        )


@dataclass(frozen=True, kw_only=True)
class WebDataset(_Labelled):
    """Convert WebDataset tars that other programs wrote."""

    image_field: str | None = None
    """The end of the image member's name; if not given, that of an image format."""
    label_field: str | None = None
    """The end of the label member's name, or a field of the JSON; if not given, cls or label."""

    def open(self) -> Source:
        fields = FieldNames(image=self.image_field, label=self.label_field)
        return open_webdataset(
            self.input, fields, self.workers, class_names=self.names(), first_label=self.first_label
        )


@dataclass(frozen=True, kw_only=True)
class Table(_Labelled):
    """Convert images that a CSV, TSV or Parquet table lists."""

    root: Path | None = None
    """The folder that the table's paths begin in; if not given, the table's own."""
    path_column: str | None = None
    """The column of paths; if not given, one of the usual names."""
    label_column: str | None = None
    """The column of labels; if not given, one of the usual names."""
    split_column: str | None = None
    """The column of splits; if not given, one of the usual names, or all is train."""
    allow_outside: bool = False
    """Take images that lie outside the root."""

    def open(self) -> Source:
        columns = TableColumns(
            path=self.path_column, label=self.label_column, split=self.split_column
        )
        return open_table(
            self.input,
            self.root or self.input.parent,
            columns,
            class_names=self.names(),
            first_label=self.first_label,
            outside=self.allow_outside,
        )


@dataclass(frozen=True, kw_only=True)
class Cifar10(_Reading):
    """Convert the official Python archive of CIFAR-10, or the folder unpacked from it."""

    def open(self) -> Source:
        return open_cifar10(self.input)


@dataclass(frozen=True, kw_only=True)
class Cifar100(_Reading):
    """Convert the official Python archive of CIFAR-100, or the folder unpacked from it."""

    def open(self) -> Source:
        return open_cifar100(self.input)


@dataclass(frozen=True, kw_only=True)
class ImageNet(_Reading):
    """Convert the folder of ILSVRC2012's archives, packed or unpacked."""

    num_classes: Count = NUM_CLASSES
    """Number of classes that the input must have."""

    def open(self) -> Source:
        return open_imagenet(self.input, num_classes=self.num_classes)


@dataclass(frozen=True, kw_only=True)
class Synthetic(_Sharding):
    """Draw shapes of 10 classes."""

    num_train: Count = 10_000
    """Number of training images."""
    num_val: Count = 2_000
    """Number of validation images."""

    def open(self) -> Source:
        return make_synthetic(
            seed=self.seed,
            size=self.size or 32,
            num_train=self.num_train,
            num_val=self.num_val,
        )


SOURCES: Mapping[str, type[_Sharding]] = {
    "folder": Folder,
    "parquet": Parquet,
    "webdataset": WebDataset,
    "table": Table,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "imagenet": ImageNet,
    "synthetic": Synthetic,
}


def summary(manifest: Manifest, made: str, shards: Path) -> str:
    splits = manifest.splits.values()
    samples = " + ".join(f"{split.num_samples:,} {split.name}" for split in splits)
    return (
        f"{shards}: {samples} samples of {manifest.num_classes} classes in "
        f"{sum(len(split.filenames) for split in splits)} shards ({made}); "
        f"rejected: {_reasons(manifest.rejected)}; rewritten: {_reasons(manifest.rewritten)}"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"
