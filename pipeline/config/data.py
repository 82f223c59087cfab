"""Where samples come from: fields of `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never, get_args

from data_prep.shard_set.fields import Reads, above, at_least, at_most, within, wrong
from data_prep.shard_set.files import path_option
from pipeline.config.marks import Condition, Operational, PerHost, one_of, only_with

ReaderName = Literal["tar", "remote", "beton", "resident"]

READERS: tuple[ReaderName, ...] = get_args(ReaderName)
"""From the one that asks for least: no copy of the data, no network, no memory."""


def is_command(shards: str) -> bool:
    """Whether a shell runs what stands there, to fetch the files of the shard set."""
    return shards.startswith("pipe:")


def is_url(shards: str) -> bool:
    """Whether a shard set is to be fetched, and not a directory of this host."""
    return "://" in shards or is_command(shards)


def located(text: str) -> str:
    """The `Location` that a user means by `text`: it holds in every folder.

    Raises `PathOptionError` for the `~` of nobody.
    """
    return location_option(text) if text else text


def location_option(text: str) -> str:
    """The same of an option that is left out where there is none: empty it is an error, too."""
    return text if is_url(text) else str(path_option(text).absolute())


LOCATION = Reads(located)
Location = Annotated[str, LOCATION]
"""The absolute path of a file or directory, or a URL; empty: none."""

Seconds = Annotated[float, above(0), at_most(1_000_000)]
"""Longer than a job waits for anything, and short enough for every timer."""

_AT_URL = Condition("data.shards", "at a URL", is_url)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and how they are read."""

    shards: Annotated[Location, PerHost] = ""
    """Directory of the shard set, or its URL: see "Remote shards" in docs/operations.md. It may be
    moved: its manifest's hash is what is compared."""
    reader: Annotated[ReaderName, Operational] = "tar"
    """How `train` is read: images from local tars as they are needed, from tars staged from a URL,
    from one .beton file, or all of them once, decoded, into the memory of the devices, and those of
    `val` with them."""
    beton: Annotated[Location, PerHost, only_with(one_of("data.reader", "beton"))] = ""
    """The .beton file of the shard set."""
    shuffle_shards: Annotated[int | None, at_least(1)] = None
    """None: shuffle all samples at once; N: shuffle the shards, then the samples of N shards at a
    time, so that a cache of the shards may be smaller than they are."""
    drop_last: bool = True
    """Leave out the epoch's last, smaller batch (other samples in every epoch)."""
    decode_threads: Annotated[int, at_least(1), PerHost] = 1
    """Threads of a rank that read and decode."""
    prefetch_batches: Annotated[int, at_least(1), PerHost] = 4
    """Batches read ahead of the one in use."""
    max_corrupt_ratio: Annotated[float, within(0, 1), Operational] = 1e-4
    """Share of the train split that a rank may find damaged: each such image is replaced by the
    next good one and counted. Of `val` none may be."""
    cache_dir: Annotated[Location, PerHost, only_with(_AT_URL)] = ""
    """Directory, on a local disk of each host, that shards from a URL are staged into. Jobs of a
    host may share it."""
    cache_bytes: Annotated[int | None, at_least(1), PerHost, only_with(_AT_URL)] = None
    """Upper limit for all shards in the cache, of all jobs together; none: the size of the disk."""
    fetch_timeout_seconds: Annotated[Seconds, PerHost, only_with(_AT_URL)] = 30.0
    """An attempt to fetch a file fails after this time without a byte of it. All attempts should
    end within distributed.timeout_seconds, or ranks that wait for this one give up first."""
    fetch_attempts: Annotated[int, at_least(1), PerHost, only_with(_AT_URL)] = 5
    """Attempts to fetch a file before the run ends; the pauses between them double."""

    @property
    def is_remote(self) -> bool:
        """Whether `shards` is a URL."""
        return is_url(self.shards)

    @property
    def is_resident(self) -> bool:
        """Whether all images lie in the memory of the devices while it is trained on them."""
        match self.reader:
            case "resident":
                return True
            case "tar" | "remote" | "beton":
                return False
            case unknown:
                assert_never(unknown)

    def __post_init__(self) -> None:
        if self.is_remote and not self.cache_dir:
            raise wrong(
                "data.shards",
                f"the URL {self.shards} without data.cache_dir",
                "a directory on a local disk to stage the shards into",
            )
        allowed = ("remote", "resident") if self.is_remote else ("tar", "beton", "resident")
        if self.shards and self.reader not in allowed:
            raise wrong(
                "data.reader",
                f"{self.reader} with data.shards {self.shards}",
                f"{', '.join(allowed[:-1])} or {allowed[-1]} where shards are "
                f"{'at a URL' if self.is_remote else 'on this host'}",
            )
        if self.reader == "beton" and not self.beton:
            raise wrong(
                "data.beton",
                "empty with data.reader beton",
                "the file that 'python -m data_prep beton' made",
            )
