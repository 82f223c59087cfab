"""The command `python -m data_prep shard SOURCE`: its options, and what each source adds."""

from __future__ import annotations

import os
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_prep.convert.assignment import Task
from data_prep.convert.conversion import Options, convert, convert_part
from data_prep.convert.output import ConversionError
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.fields import SEED, Reads, within
from data_prep.shard_set.manifest import Encoding, Manifest, check_name
from data_prep.shard_set.options import Named
from data_prep.sources.cifar import open_cifar10, open_cifar100
from data_prep.sources.folder import open_folder
from data_prep.sources.imagenet import NUM_CLASSES, open_imagenet
from data_prep.sources.source import Source
from data_prep.sources.synthetic import make_synthetic

RejectRatio = Annotated[float, within(0, 1), Named("--max-reject-ratio", "R")]
_Count = Annotated[int, within(1, 10_000_000)]


def num_processors() -> int:
    """How many this process may use, which under SLURM are fewer than there are."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class _Sharding:
    """The options of every source."""

    shards: Annotated[Path, Named("--output", "SHARDS")]
    """Folder of the shard set, new or one that the same command has begun."""
    name: Annotated[str | None, Reads(check_name)] = None
    """What reports call the shard set; if not given, what the source is known as."""
    encoding: Encoding | None = None
    """Store JPEGs or pixels; if not given, as suits the source."""
    size: Annotated[int | None, within(1, 8192)] = None  # more is unsafe to Pillow
    """Scale the short side to N, crop the middle N×N."""
    jpeg_quality: Annotated[int | None, within(1, 100), Named("--jpeg-quality", "Q")] = None
    """Quality of images that must be encoded anew; 95 if not given."""
    samples_per_shard: _Count = 1000
    """Samples in every shard of a split but the last."""
    seed: Annotated[int, SEED] = 0
    """Seed of the shuffle, and of what synthetic draws."""
    workers: Annotated[int, within(1, 512)] = field(default_factory=num_processors)
    """Processes that convert; they do not change the result."""
    max_reject_ratio: RejectRatio = 0.001
    """Stop if more than this share of the images cannot be used."""
    num_tasks: Annotated[int | None, within(1, 10_000)] = None
    """Write an N-th of the shards only; 'merge' publishes them when all are there."""
    task: Annotated[int | None, within(0, 9_999), Named("--task", "I")] = None
    """Which of the N tasks this is: from 0 to N-1."""

    @abstractmethod
    def open(self) -> Source:
        """The raw data."""

    def run(self) -> int:
        begin = time.monotonic()
        task = self._task()
        source = self.open()
        how = self._options(source)
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConversionError(
                f"--output {self.shards} cannot be made a folder: {error.strerror}; "
                "give another one"
            ) from None
        if task is not None:
            num_shards, num_read = convert_part(source, self.shards, how, task, sys.stderr)
            sys.stdout.write(
                f"{self.shards}: {num_shards} {'shard' if num_shards == 1 else 'shards'} of {task} "
                f"{'is' if num_shards == 1 else 'are'} there "
                f"({_rate(num_read, begin)}); after the last task run "
                f"'python -m data_prep merge {self.shards}'\n"
            )
            return 0
        manifest, num_read = convert(source, self.shards, how, sys.stderr)
        sys.stdout.write(summary(manifest, _rate(num_read, begin), self.shards))
        return 0

    def _task(self) -> Task | None:
        if self.num_tasks is None and self.task is None:
            return None
        if self.num_tasks is None or self.task is None:
            raise ConversionError("--num-tasks N and --task I go together: give both or none")
        if self.task >= self.num_tasks:
            raise ConversionError(
                f"--task {self.task} is not below --num-tasks {self.num_tasks}: "
                "tasks are counted from 0"
            )
        return Task(self.task, self.num_tasks)

    def _options(self, source: Source) -> Options:
        encoding: Encoding = self.encoding or source.default_encoding
        codec = codec_of(encoding)
        if self.jpeg_quality is not None and codec.default_quality is None:
            raise ConversionError(
                f"--jpeg-quality has no effect with --encoding {encoding}: leave it out"
            )
        return Options(
            encoding=encoding,
            size=self.size or (source.default_size if codec.has_fixed_size else None),
            jpeg_quality=self.jpeg_quality or codec.default_quality,
            samples_per_shard=self.samples_per_shard,
            seed=self.seed,
            num_workers=self.workers,
            max_reject_ratio=self.max_reject_ratio,
            ignore_changes=isinstance(self, _Reading) and self.ignore_changes,
            name=self.name,
        )


@dataclass(frozen=True, kw_only=True)
class _Reading(_Sharding):
    """The options of every source that reads files."""

    input: Annotated[Path, Named("--input", "PATH")]
    """The raw data: a folder, or what the source says."""
    ignore_changes: bool = False
    """Keep finished shards though images in them were replaced since."""


@dataclass(frozen=True, kw_only=True)
class Folder(_Reading):
    """Convert images in train/CLASS/* and val/CLASS/* or test/CLASS/*."""

    def open(self) -> Source:
        return open_folder(self.input)


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

    num_classes: _Count = NUM_CLASSES
    """Number of classes that the input must have."""

    def open(self) -> Source:
        return open_imagenet(self.input, num_classes=self.num_classes)


@dataclass(frozen=True, kw_only=True)
class Synthetic(_Sharding):
    """Draw shapes of 10 classes."""

    num_train: _Count = 10_000
    """Number of training images."""
    num_val: _Count = 2_000
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
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "imagenet": ImageNet,
    "synthetic": Synthetic,
}


def _rate(num_read: int, begin: float) -> str:
    seconds = time.monotonic() - begin
    return f"{num_read / seconds:,.0f} samples a second" if num_read else "complete already"


def summary(manifest: Manifest, made: str, shards: Path) -> str:
    splits = manifest.splits.values()
    samples = " + ".join(f"{split.num_samples:,} {split.name}" for split in splits)
    return (
        f"{shards}: {samples} samples of {manifest.num_classes} classes in "
        f"{sum(len(split.filenames) for split in splits)} shards ({made}); "
        f"rejected: {_reasons(manifest.rejected)}; rewritten: {_reasons(manifest.rewritten)}\n"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"
