"""Time and instructions to decode a crop of a JPEG: libjpeg-turbo beside our decoder.

    python -m benchmarks.decoding --images DIR [--num-images 100] [--rounds 5] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample. In `original` a random-resized crop is
decoded of each, in `jpeg256` a random 224×224 of what Pillow makes of it in 256×256. The images are
decoded as they came (`restart 0`) and with a restart marker behind 1, 2 and 4 MCUs, always with the
same crops, on one thread, without Python: by libjpeg-turbo, whole; by libjpeg-turbo with its own
cropping; by ours; by ours with scaling to 224×224. Each round takes these four in turn; the time is
that of the CPU.

Instructions are counted by valgrind's callgrind, for which the processor has AVX2 and nothing
later. They are the same each time, whatever else the machine does. `functions` are those that most
are in, of the C library, too, each without the functions that it calls.
"""

from __future__ import annotations

import argparse
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.callgrind import parse_profile
from benchmarks.image_folder import find_images, shrink_images
from benchmarks.measurement import parser, report, spread
from benchmarks.rivals.limit_crop import Job, draw_jobs
from benchmarks.rivals.rounds import Setting
from data_prep.shard_set.compiled import library
from data_prep.shard_set.recoding import recode_jpeg

RESTARTS = (0, 1, 2, 4)
SETTINGS: tuple[Setting, ...] = ("original", "jpeg256")

DECODERS: Mapping[str, str] = {
    "libjpeg-turbo, whole": "decode_window",
    "libjpeg-turbo, cropped": "decode_window",
    "ours": "cut_jpegs",
    "ours, scaled": "cut_jpegs",
}
"""The names that `decode_crops.c` has them under, and what they call of the library."""

_SOURCE = Path(__file__).with_name("decode_crops.c")
_LEAST_SHARE = 0.005
"""Of the instructions, in a function that is named."""


class Program:
    """`decode_crops.c`, compiled into `scratch`, and the jobs it is run on."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._program, self._jobs = scratch / "decode_crops", scratch / "jobs"
        subprocess.run(["cc", "-O2", "-o", self._program, _SOURCE, "-ldl"], check=True)

    def set_jobs(self, jobs: Sequence[Job]) -> None:
        with self._jobs.open("wb") as file:
            for job in jobs:
                numbers = (len(job.content), job.height, job.width, *job.window)
                file.write(struct.pack("7i", *numbers) + job.content)

    def _command(self, decoder: str, rounds: int) -> list[Any]:
        return [self._program, library()._name, self._jobs, decoder, rounds]

    def microseconds(self, decoder: str) -> float:
        """CPU time an image, of a round behind one that warms up."""
        command = list(map(str, self._command(decoder, 2)))
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(run.stdout.split()[-1])

    def instructions(self, decoder: str) -> Mapping[str, int]:
        """Of one round, by function."""
        profile = self._scratch / "callgrind.out"
        command = [
            *("valgrind", "--tool=callgrind", "--quiet", f"--callgrind-out-file={profile}"),
            *(f"--toggle-collect={DECODERS[decoder]}", *self._command(decoder, 1)),
        ]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return parse_profile(profile.read_text())


def make_jobs(contents: Sequence[bytes], setting: Setting, restart: int) -> list[Job]:
    """The same crops for each `restart`; an image that cannot have it is left as it came."""
    if restart > 0:
        contents = [recode_jpeg(content, restart) or content for content in contents]
    random.seed(0)
    return draw_jobs(contents, setting)


def measure(program: Program, jobs: Sequence[Job], rounds: int) -> dict[str, Any]:
    """Bytes, CPU time and instructions, each an image."""
    program.set_jobs(jobs)
    times: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(rounds):
        for name, values in times.items():
            values.append(program.microseconds(name))
    found: dict[str, Any] = {"bytes": round(sum(len(job.content) for job in jobs) / len(jobs))}
    for name, values in times.items():
        found[name] = {"microseconds": spread(values, 1)}
        if shutil.which("valgrind") is None:
            found[name]["instructions"] = "valgrind is not installed"
        else:
            counts = program.instructions(name)
            found[name] |= summarize(counts, len(jobs))
    return found


def summarize(counts: Mapping[str, int], num_images: int) -> dict[str, Any]:
    """Instructions an image, and those of the functions that matter, most first."""
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return {
        "instructions": round(total / num_images),
        "functions": {
            name: round(count / num_images)
            for name, count in ranked
            if count >= _LEAST_SHARE * total
        },
    }


def figures(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    images = find_images(options.images)
    images = images[:: max(1, len(images) // options.num_images)][: options.num_images]
    program = Program(scratch)
    found: dict[str, Any] = {"images": len(images)}
    for setting in options.settings:
        paths = shrink_images(images, scratch / "256") if setting == "jpeg256" else images
        contents = [path.read_bytes() for path in paths]
        found[setting] = {
            f"restart {restart}": measure(
                program, make_jobs(contents, setting, restart), options.rounds
            )
            for restart in RESTARTS
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--num-images", type=int, default=100)
    options_parser.add_argument("--rounds", type=int, default=5)
    options_parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options = options_parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = figures(options, Path(scratch))
    report({"claim": "what decoding a crop of a JPEG costs", **found}, options.json)


if __name__ == "__main__":
    main()
