"""The command `python -m data_prep shard SOURCE`: its sources, and the options that each adds."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.convert.conversion import Count, Options, convert
from data_prep.shard_set.manifest import Manifest
from data_prep.shard_set.options import Named
from data_prep.sources.cifar import open_cifar10, open_cifar100
from data_prep.sources.folder import open_folder
from data_prep.sources.imagenet import NUM_CLASSES, open_imagenet
from data_prep.sources.source import Source
from data_prep.sources.synthetic import make_synthetic


@dataclass(frozen=True, kw_only=True)
class _Sharding(Options):
    @abstractmethod
    def open(self) -> Source:
        """The raw data."""

    def run(self) -> int:
        begin, task = time.monotonic(), self.part
        manifest, num_shards, num_read = convert(self.open(), self, sys.stderr)
        rate = num_read / (time.monotonic() - begin)
        made = f"{rate:,.0f} samples a second" if num_read else "complete already"
        if manifest is not None:
            sys.stdout.write(summary(manifest, made, self.shards))
        else:
            sys.stdout.write(
                f"{self.shards}: {task} has written its shards, {num_shards} in all ({made}); "
                f"after the last task run 'python -m data_prep merge {self.shards}'\n"
            )
        return 0


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
        f"rejected: {_reasons(manifest.rejected)}; rewritten: {_reasons(manifest.rewritten)}\n"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"
