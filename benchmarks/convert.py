"""Images a second of conversion to 256×256, beside its parts and what people use; its memory.

    python -m benchmarks.convert --images DIR [--rounds 5] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample. 4,000 of them, each four times, are scaled
to short side 256, cropped in the middle and stored as JPEGs and as pixels: by our command, start
included; by its parts alone, decoding, scaling and encoding in a loop on each core; by a script
with webdataset's ShardWriter; and by ffcv's DatasetWriter, each in 2 processes. Each round has
everyone convert them once, in turn; ratios are taken round by round.

Then our command converts 1,000 and 20,000 images, to shards of 250: the most memory that it and its
workers have at a time, shared pages counted once, should not depend on the number.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.competition import Competitor, Course, compete
from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import parser, report, shard_folder_command
from benchmarks.memory import peak_bytes
from benchmarks.rivals.rounds import STORED_PIXELS, Setting
from data_prep.shard_set.manifest import Encoding

NUM_IMAGES = 4_000
MEMORY_IMAGES = (1_000, 20_000)
SAMPLES_PER_SHARD = 250
"""Where memory is measured: so that the fewer images too keep all workers busy."""

_ENCODINGS: dict[Setting, Encoding] = {"jpeg256": "jpeg", "raw256": "rgb"}


def make_competitors(setting: Setting, num_images: int) -> list[Competitor]:
    """Ours first, then those that it is measured by."""

    def competitor(name: str, module: str, num_ranks: int = 1) -> Competitor:
        return Competitor(
            name=name,
            module=f"benchmarks.{module}",
            num_images=num_images,
            num_ranks=num_ranks,
        )

    found = [
        competitor("ours", "ours_convert"),
        competitor("its parts", "rivals.convert_parts", len(os.sched_getaffinity(0))),
        competitor("ffcv", "rivals.convert_ffcv"),
    ]
    if setting == "jpeg256":
        found.append(competitor("webdataset", "rivals.convert_webdataset"))
    return found


def rates(
    images: Sequence[Path], scratch: Path, rounds: int, num_images: int = NUM_IMAGES
) -> dict[str, Any]:
    folder = link_images(images, scratch / "images", num_images)
    found: dict[str, Any] = {}
    for setting, encoding in _ENCODINGS.items():
        course = Course(images=folder, setting=setting, scratch=scratch / encoding)
        competitors = make_competitors(setting, num_images)
        ours, *others = (competitor.name for competitor in competitors)
        found[encoding] = compete(competitors, course, rounds).figures({ours: others})
        shutil.rmtree(course.scratch)
    return found


def memory(
    images: Sequence[Path], scratch: Path, counts: Sequence[int] = MEMORY_IMAGES
) -> dict[str, Any]:
    """Peak memory and images a second of our command, by encoding and number of images."""
    found: dict[str, Any] = {}
    for count in counts:
        folder = link_images(images, scratch / f"images-{count}", count)
        for encoding in _ENCODINGS.values():
            shards = scratch / f"{encoding}-{count}"
            command = shard_folder_command(
                folder,
                shards,
                *("--samples-per-shard", SAMPLES_PER_SHARD),
                encoding=encoding,
                size=STORED_PIXELS,
            )
            peak, seconds = peak_bytes(command)
            shutil.rmtree(shards)
            found.setdefault(encoding, {})[f"{count} images"] = {
                "peak_bytes": peak,
                "images_per_second": round(count / seconds),
            }
    for by_count in found.values():
        peaks = [row["peak_bytes"] for row in by_count.values()]
        by_count["last against first"] = round(peaks[-1] / peaks[0], 3)
    return found


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--rounds", type=int, default=5)
    options = options_parser.parse_args()
    images = find_images(options.images)
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "claim": "images a second of conversion to 256×256; its memory by number of images",
            **rates(images, Path(scratch), options.rounds),
            "memory": memory(images, Path(scratch)),
        }
    report(found, options.json)


if __name__ == "__main__":
    main()
