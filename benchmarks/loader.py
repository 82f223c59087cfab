"""Images a second of the data path, on the same cores as what people use, and beside its limit.

    python -m benchmarks.loader --images DIR [--rounds 5] [--json PATH]
        [--python dali=…/bin/python] [--python spdl=…] [--python litdata=…] [--python streaming=…]

DIR has JPEGs, such as the 1,000 of the ImageNet sample. Three settings: `original`, the JPEGs as
they are with random-resized-crop to 224 and flip; `jpeg256`, JPEGs of 256×256 with random crop to
224 and flip; `raw256`, pixels of 256×256 likewise, and planes of luma and of halved chroma, which
ours hands over as such. Everyone reads the same JPEGs from the page cache and delivers batches of
128 in uint8 with labels, on 2 threads or worker processes unless it says otherwise. Each round has
everyone read once, in turn; ratios are taken round by round.

`ours` reads the JPEGs byte for byte; with `restart N` they have a restart marker behind N MCUs, the
same pictures without loss, as `data_prep shard … --restart N` writes them. The flip is left to the
device, as training does, where it is a part of normalization; `flip too` mirrors on the host, in a
pass of its own.

DALI, SPDL, LitData and MosaicML Streaming are optional; each may live in an environment of its own,
whose interpreter `--python` names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.competition import Competitor, Course, compete
from benchmarks.image_folder import find_images, link_images, shrink_images
from benchmarks.measurement import parser, report
from benchmarks.rivals.rounds import SETTINGS, Setting

NUM_WORKERS = 2
RANKS_AND_THREADS = tuple((ranks, threads) for ranks in (1, 2) for threads in (1, 2, 4))
"""Of pixels, which are copied faster than two threads of others read."""

OURS, LIMIT, CROPPED = "ours", "limit", "limit, cropped"
OPTIONAL = ("dali", "spdl", "litdata", "streaming")

_NUM_IMAGES: Mapping[Setting, int] = {"original": 2_000, "jpeg256": 4_000, "raw256": 8_000}
"""In a round of most: a few seconds."""

_NUM_QUICK: Mapping[Setting, int] = {"original": 4_000, "jpeg256": 8_000, "raw256": 96_000}
"""In a round of ours and of the limits."""

RESTARTS = (1, 2, 4)
"""MCUs between the restart markers that ours has JPEGs with, beside JPEGs as they came."""

_USUAL_RESTART = 2

_OURS, _COPY = "ours_loader", "rivals.limit_copy"

_NUM_BUFFERS = 5
"""As many batches as our loader has in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Who takes part in a setting, in the order of a round, and whom ours are measured by."""

    competitors: list[Competitor]
    measured_by: dict[str, list[str]]


def make_contest(setting: Setting, originals: Path, pythons: Mapping[str, str]) -> Contest:
    """`originals` has the images in their own sizes; `pythons` names interpreters of rivals."""
    rivals = _rivals(setting, pythons)
    names = [rival.name for rival in rivals]
    if setting == "raw256":
        rows, measured_by = _copying()
        measured_by[_in_threads(OURS, 1, NUM_WORKERS)] += names
        return Contest(competitors=rows + rivals, measured_by=measured_by)
    limits = [
        Competitor(
            name=name,
            module=f"benchmarks.rivals.{module}",
            num_images=_NUM_QUICK[setting],
            num_ranks=len(os.sched_getaffinity(0)),
        )
        for name, module in ((LIMIT, "limit_decode"), (CROPPED, "limit_crop"))
    ]
    ours = _ours(setting, originals)
    return Contest(
        competitors=[*limits, *ours, *rivals],
        measured_by={one.name: [LIMIT, CROPPED, *names] for one in ours},
    )


def _ours(setting: Setting, originals: Path) -> list[Competitor]:
    def row(name: str, *options: object) -> Competitor:
        return Competitor(
            name=name,
            module=f"benchmarks.{_OURS}",
            num_images=_NUM_QUICK[setting],
            options=("--num-workers", NUM_WORKERS, *options),
        )

    usual = f"{OURS}, restart {_USUAL_RESTART}"
    rows = [
        row(OURS, "--no-flip"),
        *(
            row(f"{OURS}, restart {number}", "--no-flip", "--restart", number)
            for number in RESTARTS
        ),
        row(f"{usual}, flip too", "--restart", _USUAL_RESTART),
    ]
    if setting == "jpeg256":
        # What our own conversion makes of the originals has colours that are not subsampled.
        own = ("--no-flip", "--images", originals)
        rows.append(row(f"{OURS}, 4:4:4", *own))
        rows.append(row(f"{usual}, 4:4:4", *own, "--restart", _USUAL_RESTART))
    return rows


def _rivals(setting: Setting, pythons: Mapping[str, str]) -> list[Competitor]:
    def rival(name: str, module: str, *options: object) -> Competitor:
        return Competitor(
            name=name,
            module=f"benchmarks.rivals.{module}",
            num_images=_NUM_IMAGES[setting],
            options=("--num-workers", NUM_WORKERS, *options),
            python=pythons.get(module.removesuffix("_loader"), sys.executable),
        )

    return [
        rival("ffcv", "ffcv_loader"),
        *(
            [rival("ffcv, no flip", "ffcv_loader", "--no-flip")]
            if setting == "raw256"
            else [rival("DALI", "dali_loader"), rival("SPDL", "spdl_loader")]
        ),
        rival("webdataset + Pillow", "webdataset_pil"),
        rival("folder + Pillow", "folder_pil"),
        rival("LitData + Pillow", "litdata_loader"),
        rival("MosaicML Streaming + Pillow", "streaming_loader"),
    ]


def _copying() -> tuple[list[Competitor], dict[str, list[str]]]:
    """Ours and the bare copying loops, on each of `RANKS_AND_THREADS`; on one rank of planes, too.

    Ours of planes are measured by ours of pixels as well.
    """
    ring, rows, measured_by = ("--num-buffers", _NUM_BUFFERS), [], {}
    for ranks, threads in RANKS_AND_THREADS:

        def row(
            name: str, module: str, *options: object, ranks: int = ranks, threads: int = threads
        ) -> str:
            rows.append(
                Competitor(
                    name=_in_threads(name, ranks, threads),
                    module=f"benchmarks.{module}",
                    num_images=_NUM_QUICK["raw256"],
                    options=("--num-workers", threads, *options),
                    num_ranks=ranks,
                )
            )
            return rows[-1].name

        limits = [row(LIMIT, _COPY), row(f"{LIMIT}, ring", _COPY, *ring)]
        ours = row(OURS, _OURS, "--no-flip")
        measured_by[ours] = limits
        if ranks == 1:
            limit = row(f"{LIMIT}, ring, planes", _COPY, *ring, "--planes")
            measured_by[row(f"{OURS}, planes", _OURS, "--no-flip", "--planes")] = [limit, ours]
    return rows, measured_by


def _in_threads(name: str, ranks: int, threads: int) -> str:
    return f"{name}, {ranks} × {threads} threads"


def figures(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    images = find_images(options.images)
    originals = link_images(images, scratch / "originals", len(images))
    shrunk = shrink_images(images, scratch / "shrunk")
    folders = {"original": originals}
    folders["jpeg256"] = folders["raw256"] = link_images(shrunk, scratch / "256", len(images))
    found = {}
    for setting in options.settings:
        contest = make_contest(setting, originals, dict(options.python))
        course = Course(
            images=folders[setting], setting=setting, scratch=scratch / f"data-{setting}"
        )
        result = compete(contest.competitors, course, options.rounds)
        found[setting] = result.figures(contest.measured_by)
    return {"images": len(images), **found}


def _interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in OPTIONAL or not Path(path).is_file():
        raise argparse.ArgumentTypeError(
            f"'{text}' is not NAME=INTERPRETER, with a name of {', '.join(OPTIONAL)} and a file"
        )
    return name, path


def main(arguments: list[str] | None = None) -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--rounds", type=int, default=5)
    options_parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options_parser.add_argument(
        "--python", type=_interpreter, action="append", default=[], metavar="NAME=INTERPRETER"
    )
    options = options_parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = figures(options, Path(scratch))
    claim = "images a second of the data path, against what people use and beside its limit"
    report({"claim": claim, **found}, options.json)


if __name__ == "__main__":
    main()
