"""Adopting tars of others beside reading and hashing the same bytes.

    python -m benchmarks.adopting --images DIR [--rounds 5] [--copies 3] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample; each goes in that many times, into tars of
webdataset's own ShardWriter. Each round reads all tars from memory, hashes them (sha256, which the
manifest needs), reads them as `adopt` does, and runs the whole command, which also starts, decodes
2,000 images for the colour statistics and writes: megabytes for each second of a core's time. Then
it reads them from the disk, in megabytes a second: a core that adopts at least as many keeps up
with the disk. Ratios are taken round by round.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.image_folder import find_images
from benchmarks.measurement import parser, report, spread
from benchmarks.sources import command, read_all, write_inputs
from data_prep.adopt.tar_record import read_tar
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.foreign_tar import FieldNames


def core_seconds() -> float:
    """Of this process and of the commands it ran."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def adopt_all(tars: Sequence[Path]) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(lambda tar: read_tar(tar, FieldNames()), tars))


def forget(tars: Sequence[Path]) -> None:
    """Have the tars on the disk alone."""
    for tar in tars:
        with tar.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def taken(do: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    do()
    return clock() - begin


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--rounds", type=int, default=5)
    options_parser.add_argument("--copies", type=int, default=3)
    options = options_parser.parse_args()
    images = find_images(options.images)
    in_memory: dict[str, list[float]] = {}
    from_disk: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = write_inputs(images, options.copies, Path(scratch))
        tars, shards = sorted(folder.iterdir()), Path(scratch) / "adopted"
        num_bytes = sum(path.stat().st_size for path in tars)
        doers: dict[str, Callable[[], object]] = {
            "read": lambda: read_all(folder),
            "hash": lambda: [sha256_of(tar) for tar in tars],
            "adopt, reading": lambda: adopt_all(tars),
            "adopt, command": lambda: command("adopt", folder, "--output", shards),
        }
        for _ in range(options.rounds):
            shutil.rmtree(shards, ignore_errors=True)
            for name, do in doers.items():
                in_memory.setdefault(name, []).append(taken(do, core_seconds))
            forget(tars)
            from_disk.append(taken(doers["read"], time.perf_counter))

    def rates(times: list[float]) -> dict[str, object]:
        return spread([num_bytes / 1e6 / each for each in times], 1)

    def ratio(of: list[float]) -> dict[str, object]:
        """The rate of adopting's reading to that which took these times."""
        return spread([b / a for a, b in zip(in_memory["adopt, reading"], of, strict=True)])

    figures = {
        "claim": "a core adopts tars at half the rate of sha256 alone, and faster than the disk",
        "images": len(images) * options.copies,
        "bytes": num_bytes,
        "megabytes_per_core_second": {name: rates(times) for name, times in in_memory.items()},
        "disk_megabytes_per_second": rates(from_disk),
        "reading_of_hash": ratio(in_memory["hash"]),
        "reading_of_read": ratio(in_memory["read"]),
        "reading_on_a_core_of_disk": ratio(from_disk),
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
