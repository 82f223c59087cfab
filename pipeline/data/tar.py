"""Local shards, read by index: one positioned read a sample, no tar parsing."""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import simplejpeg

from data_prep.manifest import Manifest, ShardSetError, check_shard_sizes, read_index

_TAR_BLOCK_BYTES = 512
_TAR_NAME_BYTES = 100


@dataclass(slots=True)
class ReadCost:
    """What reading cost so far; the seconds are summed over the decoding threads."""

    num_samples: int = 0
    num_bytes: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, other: ReadCost) -> None:
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        self.read_seconds += other.read_seconds
        self.decode_seconds += other.decode_seconds


class TarReader:
    """Decodes any samples of one split into a buffer of the caller's, in `num_threads` threads.

    Raises `ShardSetError` if a shard or the index is missing or not what the manifest says, or if
    the images have no common size.
    """

    def __init__(self, shards: Path, manifest: Manifest, split: str, *, num_threads: int) -> None:
        assert num_threads > 0
        self._shards = shards
        self._split = manifest.split(split)
        if manifest.image_height is None or manifest.image_width is None:
            raise ShardSetError(
                f"the images of {shards} differ in size; convert them with --size N to one size"
            )
        self.image_shape = (manifest.image_height, manifest.image_width, 3)
        self._decode = _decode_jpeg if manifest.encoding == "jpeg" else _decode_rgb
        check_shard_sizes(shards, self._split)
        self._index = read_index(shards, self._split)
        self._files = _open_all([shards / name for name in self._split.filenames])
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    @property
    def num_samples(self) -> int:
        return self._split.num_samples

    def labels(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Labels of the sample numbers, `int64`."""
        return self._index["label"][samples].astype(np.int64)

    def read(self, samples: npt.NDArray[np.int64], images: npt.NDArray[np.uint8]) -> ReadCost:
        """Decode the samples into the first rows of `images`, uint8 N×H×W×3.

        Raises `ShardSetError` naming shard and key of the first sample that does not decode.
        """
        chunks = np.array_split(np.arange(len(samples)), min(self._num_threads, len(samples)))
        cost = ReadCost()
        for part in self._threads.map(lambda rows: self._read_rows(samples, images, rows), chunks):
            cost.add(part)
        return cost

    def _read_rows(
        self,
        samples: npt.NDArray[np.int64],
        images: npt.NDArray[np.uint8],
        rows: npt.NDArray[np.int64],
    ) -> ReadCost:
        cost = ReadCost(num_samples=len(rows))
        for row, entry in zip(rows, self._index[samples[rows]], strict=True):
            begin = time.perf_counter()
            content = os.pread(
                self._files[entry["shard"]], int(entry["num_bytes"]), int(entry["offset"])
            )
            read = time.perf_counter()
            try:
                self._decode(content, images[row])
            except ValueError as error:
                raise ShardSetError(
                    f"shard {self._shards / self._split.filenames[entry['shard']]}, "
                    f"member {self._member_name(entry)}: {error}; "
                    "see 'python -m data_prep verify --full', copy the shard again or convert again"
                ) from None
            cost.num_bytes += len(content)
            cost.read_seconds += read - begin
            cost.decode_seconds += time.perf_counter() - read
        return cost

    def _member_name(self, entry: np.void) -> str:
        header = os.pread(
            self._files[entry["shard"]], _TAR_NAME_BYTES, int(entry["offset"]) - _TAR_BLOCK_BYTES
        )
        return header.split(b"\0", 1)[0].decode(errors="replace")

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file in self._files:
            os.close(file)
        self._files = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_all(paths: list[Path]) -> list[int]:
    """Open every shard once; the soft limit on open files is raised as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files: list[int] = []
    try:
        files.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
    except OSError as error:
        for file in files:
            os.close(file)
        raise ShardSetError(
            f"cannot open shard {error.filename}: {error.strerror} ({len(paths)} shards, limit of "
            f"open files {hard}); raise the limit with 'ulimit -Hn' or use larger shards"
        ) from None
    return files


def _decode_jpeg(content: bytes, image: npt.NDArray[np.uint8]) -> None:
    """Decode a JPEG into `image`, uint8 H×W×3."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    if (height, width) != image.shape[:2]:
        raise ValueError(f"the image is {height}×{width}; expected {image.shape[:2]}")
    simplejpeg.decode_jpeg(content, buffer=image)


def _decode_rgb(content: bytes, image: npt.NDArray[np.uint8]) -> None:
    """Copy the pixels of an .npy into `image`; they are its last bytes."""
    if len(content) < image.size or content[:6] != b"\x93NUMPY":
        raise ValueError(f"{len(content)} bytes that are not an .npy of {image.shape}")
    image[:] = np.frombuffer(content, np.uint8)[-image.size :].reshape(image.shape)
