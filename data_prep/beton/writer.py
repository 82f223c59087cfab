"""Has ffcv's own code write a `.beton`, in this process.

ffcv's writer starts worker processes and waits for them without checking on them: if one fails
or dies, it waits for ever. One worker copies as fast as disks write, so the worker's function is
called here instead, between the writer's steps before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing import Value
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from data_prep.beton.samples import BetonImage, ShardSamples
from data_prep.convert.output import ConversionError

_PAGE_BYTES = 1 << 23
"""Of a page, unless an image is larger: ffcv's default."""
_MAX_PAGE_BYTES = 1 << 30  # the power of two below what Linux writes at once; ffcv writes once
_INSTALL = (
    "'make ffcv' installs it, as does on Debian 'apt install g++ pkg-config python3-dev "
    "libopencv-dev libturbojpeg0-dev', then 'pip install ffcv==1.0.2'"
)


def open_writer(samples: ShardSamples) -> Callable[[Path, Callable[[int, int], None]], None]:
    """ffcv's writer of the samples, in their order: the same samples give the same bytes.

    Takes seconds. Raises `ConversionError` if ffcv is not there or an image is too large. The
    writer takes the path and a function that shows progress. It raises `OSError` if a disk fails,
    and `ShardSetError` if a sample is damaged; the file is then of no use.
    """
    page_bytes = choose_page_bytes(int(samples.image_bytes.max()))
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.writer import DatasetWriter, worker_job_indexed_dataset
    except ImportError as error:
        raise ConversionError(
            f"writing a .beton needs ffcv, which does not load ({error}): {_INSTALL}"
        ) from None
    fields = {"image": RGBImageField(), "label": IntField()}

    def encode(row: Any, image: BetonImage, allocate: Callable[[int], tuple[int, Any]]) -> None:
        """Store the image's bytes as they are; ffcv's own would encode pixels anew."""
        row["mode"], (row["height"], row["width"], content) = samples.mode, image
        row["data_ptr"], room = allocate(len(content))
        room[:] = memoryview(content)

    # On the object: when reading, ffcv would not know the type of a subclass.
    fields["image"].encode = encode

    def write(path: Path, show: Callable[[int, int], None]) -> None:
        writer = DatasetWriter(str(path), fields, page_bytes, num_workers=1)
        writer.num_samples = len(samples)
        writer.prepare()
        shared = writer.metadata_sm
        shared.close()
        shared.unlink()
        writer.metadata_sm = SimpleNamespace(buf=bytearray(shared.size))  # nobody shares it
        pages = MemoryAllocator(str(path), writer.data_region_start, page_bytes)
        todo = _todo(len(samples), show)
        worker_job_indexed_dataset(
            SimpleNamespace(get=lambda: next(todo, None)),
            writer.metadata_sm,
            writer.metadata_type,
            fields,
            pages,
            Value("Q"),
            SimpleQueue(),
            samples,
        )
        writer.finalize(pages.allocations)

    return write


def _todo(num_samples: int, show: Callable[[int, int], None]) -> Iterator[list[tuple[int, int]]]:
    """ffcv's pieces of work: pairs of a sample's row in the file and its number here."""
    for number in range(num_samples):
        show(number, num_samples)
        yield [(number, number)]


def choose_page_bytes(image_bytes: int) -> int:
    """The size of pages, a power of two, that holds the largest image: ffcv splits none."""
    page_bytes = max(_PAGE_BYTES, 1 << (image_bytes - 1).bit_length())
    if page_bytes > _MAX_PAGE_BYTES:
        raise ConversionError(
            f"the largest image has {image_bytes} bytes; a .beton holds at most {_MAX_PAGE_BYTES} "
            "bytes an image: convert the data with --size N"
        )
    return page_bytes
