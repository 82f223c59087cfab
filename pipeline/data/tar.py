"""Local shards, read by index: one positioned read a sample, no tar parsing."""

from __future__ import annotations

import functools
import io
import os
import re
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
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[a-z]+")


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

        Raises `ShardSetError` naming shard and place of the first sample that does not decode.
        """
        assert len(samples) <= len(images), f"{len(samples)} samples, room for {len(images)}"
        chunk_size = max(1, -(-len(samples) // self._num_threads))
        chunks = [slice(at, at + chunk_size) for at in range(0, len(samples), chunk_size)]
        if len(chunks) <= 1:  # in this thread: a hand-over costs more than it could gain
            return self._read_chunk(samples, images)
        cost = ReadCost()
        for part in self._threads.map(
            lambda chunk: self._read_chunk(samples[chunk], images[chunk]), chunks
        ):
            cost.add(part)
        return cost

    def _read_chunk(
        self, samples: npt.NDArray[np.int64], images: npt.NDArray[np.uint8]
    ) -> ReadCost:
        cost = ReadCost(num_samples=len(samples))
        # As Python numbers all at once: fields of a single row of an array are slow to get at.
        for image, entry in zip(images, self._index[samples].tolist(), strict=False):
            shard, offset, num_bytes, _ = entry
            begin = time.perf_counter()
            try:
                content = os.pread(self._files[shard], num_bytes, offset)
                read = time.perf_counter()
                self._decode(content, image)
            except (OSError, ValueError) as error:
                raise ShardSetError(self._complaint(shard, offset, error)) from None
            cost.num_bytes += len(content)
            cost.read_seconds += read - begin
            cost.decode_seconds += time.perf_counter() - read
        return cost

    def _complaint(self, shard: int, offset: int, error: OSError | ValueError) -> str:
        return (
            f"shard {self._shards / self._split.filenames[shard]}, "
            f"{self._place(shard, offset)}: {error}; "
            "see 'python -m data_prep verify --full', copy the shard again or convert again"
        )

    def _place(self, shard: int, offset: int) -> str:
        """Which member it is, from the header in front of its content if that is whole."""
        try:
            header = os.pread(self._files[shard], _TAR_NAME_BYTES, offset - _TAR_BLOCK_BYTES)
        except OSError:
            header = b""
        name = header.split(b"\0", 1)[0]
        return f"member {name.decode()}" if _MEMBER.fullmatch(name) else f"at byte {offset}"

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
        raise ValueError(f"the image is {height}×{width}; expected {_times(image.shape[:2])}")
    simplejpeg.decode_jpeg(content, buffer=image)


def _decode_rgb(content: bytes, image: npt.NDArray[np.uint8]) -> None:
    """Copy the pixels of an .npy into `image`, uint8 H×W×3; they are its last bytes."""
    header_bytes = max(0, len(content) - image.size)
    _check_npy_header(content[:header_bytes], image.shape)
    image[:] = np.frombuffer(content, np.uint8, offset=header_bytes).reshape(image.shape)


@functools.cache  # all images of a shard set have the same header
def _check_npy_header(header: bytes, shape: tuple[int, ...]) -> None:
    """Check that `header` is all that precedes the pixels of an .npy of uint8 in `shape`.

    Raises `ValueError` if it is something else.
    """
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        found = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
    except ValueError:
        found = None
    if found != (shape, False, np.dtype(np.uint8)) or file.read():
        what = "not an .npy" if found is None else f"an .npy of {found[2]} {_times(found[0])}"
        raise ValueError(f"{what}; expected uint8 {_times(shape)}, row by row and nothing more")


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
