"""The commands of data_prep: their options, and what they print at the end.

python -m data_prep shard SOURCE [--input PATH] --output SHARDS [options]
python -m data_prep adopt TARS… --output SHARDS
python -m data_prep merge SHARDS
python -m data_prep verify SHARDS [--full]
python -m data_prep look SHARDS [--html PAGE]
python -m data_prep diff SHARDS OTHER
python -m data_prep beton SHARDS OUT.beton
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_prep.adopt.adopt import Adoption, adopt, common_folder, expand
from data_prep.beton.beton import write_beton
from data_prep.convert.conversion import merge
from data_prep.convert.options import RejectRatio, num_processors
from data_prep.convert.output import ConversionError
from data_prep.look.compare import compare
from data_prep.look.look import describe, look
from data_prep.look.sheet import contact_sheet
from data_prep.shard_set.fields import Reads, within
from data_prep.shard_set.files import describe as describe_error
from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.foreign_tar import FieldNames
from data_prep.shard_set.manifest import ShardSetError, check_name
from data_prep.shard_set.options import Named, Parser, add_commands
from data_prep.shard_set.progress import Progress
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from data_prep.sharding import SOURCES, summary
from data_prep.sources.labels import read_class_names
from data_prep.sources.source import SourceError
from data_prep.verify.verify import find_damages

_INTERRUPTED = 130

_Shards = Annotated[Path, Named("SHARDS")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return int(options.run(options))
    except (SourceError, ConversionError, ShardSetError) as error:
        return _fail(describe_error(error))
    except OSError as error:
        return _fail(f"{describe_error(error)}; once that is mended, run the same command again")
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from here")
        return _INTERRUPTED


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line asks for; exits with the usage if it is not as `--help` says."""
    parser = Parser(
        prog="python -m data_prep", description="Make a shard set from raw images, or check one."
    )
    commands = add_commands(
        parser,
        "COMMAND",
        {
            "adopt": (Adopt, Adopt.run),
            "merge": (Merge, Merge.run),
            "verify": (Verify, Verify.run),
            "look": (Look, Look.run),
            "diff": (Diff, Diff.run),
            "beton": (Beton, Beton.run),
        },
    )
    shard = commands.add_parser("shard", help="Make a shard set, or finish one that was begun")
    add_commands(shard, "SOURCE", {name: (kind, kind.run) for name, kind in SOURCES.items()})
    return parser.parse_args(arguments)


def _fail(sentence: str) -> int:
    say(f"error: {sentence}", stream=sys.stderr)
    return 1


@dataclass(frozen=True, kw_only=True)
class Adopt:
    """Make a shard set of WebDataset tars that others wrote, which stay where and as they are."""

    tars: Annotated[tuple[str, ...], Named("TARS")]
    """Tars, folders of them, or patterns such as 'train-{000..146}.tar'."""
    shards: Annotated[Path | None, Named("--output", "SHARDS")] = None
    """Folder for the manifest and the indexes."""
    in_place: bool = False
    """Put them into the folder of the tars, instead of --output."""
    name: Annotated[str | None, Reads(check_name)] = None
    """What reports call the shard set."""
    image_field: str | None = None
    """The end of the image member's name; if not given, that of an image format."""
    label_field: str | None = None
    """The end of the label member's name, or a field of the JSON; if not given, cls or label."""
    class_names: Path | None = None
    """A file with the class names in label order, one a line."""
    first_label: Annotated[int, within(0, 1)] = 0
    """The number of the first class."""
    statistics_images: Annotated[int, within(1, 10_000_000)] = 2000
    """Training images that are decoded for the colour statistics."""
    workers: Annotated[int, within(1, 512)] = field(default_factory=num_processors)
    """Threads that read; they do not change the result."""

    def run(self) -> int:
        begin = time.monotonic()
        tars = expand(self.tars)
        how = Adoption(
            fields=FieldNames(image=self.image_field, label=self.label_field),
            class_names=None if self.class_names is None else read_class_names(self.class_names),
            first_label=self.first_label,
            num_statistics=self.statistics_images,
            num_threads=self.workers,
            name=self.name,
        )
        if (self.shards is None) != self.in_place:
            raise ConversionError("give either --output SHARDS or --in-place")
        shards = self.shards or common_folder(tars)
        manifest = adopt(tars, shards, how, sys.stderr)
        say(summary(manifest, f"{time.monotonic() - begin:.1f} s", shards))
        return 0


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Publish what all tasks of a conversion have made."""

    shards: _Shards
    """Folder of the shard set."""
    max_reject_ratio: RejectRatio = 0.001
    """Stop if more than this share of the images cannot be used."""

    def run(self) -> int:
        manifest = merge(self.shards, max_reject_ratio=self.max_reject_ratio)
        say(summary(manifest, "merged", self.shards))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Find all that is wrong with a shard set."""

    shards: _Shards
    """Folder of the shard set."""
    full: bool = False
    """Read every byte and decode every image, too."""

    def run(self) -> int:
        shards: Path = self.shards
        with contextlib.closing(Progress("verifying", "shards", sys.stderr)) as progress:
            damages = find_damages(
                shards, full=self.full, num_threads=num_processors(), show=progress.show
            )
        say(*map(str, damages))
        if damages:
            return _fail(
                f"{shards} is damaged (listed above: {len(damages)}): copy what is named from a "
                "good copy, or convert the data again into a new folder"
            )
        depth = "every byte" if self.full else "structure only; --full reads every byte"
        say(f"{shards}: no damage found ({depth})")
        return 0


@dataclass(frozen=True, kw_only=True)
class Look:
    """Say what is in a shard set: classes, sizes, formats, images that are there twice."""

    shards: _Shards
    """Folder of the shard set."""
    html: Annotated[Path | None, Named("--html", "PAGE")] = None
    """Write a page with images of each class."""
    images: Annotated[int, within(1, 10_000_000)] = 2000
    """Images of which size and format are looked at."""

    def run(self) -> int:
        found = look(self.shards, self.images)
        say(*describe(found))
        if self.html is not None:
            write_atomically(self.html, contact_sheet(found).encode())
        return 0


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Say how two shard sets differ; exits with 1 if they do."""

    shards: _Shards
    """Folder of the one."""
    other: Annotated[Path, Named("OTHER")]
    """Folder of the other."""

    def run(self) -> int:
        lines = compare(self.shards, self.other)
        say(*(lines or ["the same samples"]))
        return 1 if lines else 0


@dataclass(frozen=True, kw_only=True)
class Beton:
    """Write a shard set into one file of ffcv's format."""

    shards: _Shards
    """Folder of the shard set."""
    path: Annotated[Path, Named("OUT.beton")]
    """The file to write."""

    def run(self) -> int:
        try:
            beton = write_beton(self.shards, self.path, sys.stderr)
        except KeyboardInterrupt:
            _fail(f"stopped; {self.path} was not written; the same command starts over")
            return _INTERRUPTED
        samples = " + ".join(f"{count:,} {name}" for name, count in beton.record.splits.items())
        made = "" if beton.is_new else " (complete already)"
        say(
            f"{self.path}: {samples} samples of encoding {beton.record.encoding} in "
            f"{beton.num_bytes:,} bytes{made}"
        )
        return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    open_streams()
    sys.exit(exit_code_after_flush(main()))
