"""Make a shard set from raw images, or check one.

python -m data_prep shard SOURCE [--input PATH] --output SHARDS [options]
python -m data_prep merge SHARDS
python -m data_prep verify SHARDS [--full]
python -m data_prep beton SHARDS OUT.beton
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.beton.beton import write_beton
from data_prep.convert.conversion import RejectRatio, merge, num_processors
from data_prep.convert.output import ConversionError
from data_prep.convert.progress import Progress
from data_prep.shard_set.manifest import ShardSetError
from data_prep.shard_set.options import Named, Parser, add_commands
from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from data_prep.sharding import SOURCES, summary
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
        return _fail(str(error))
    except OSError as error:
        return _fail(
            f"{error.filename or options.shards}: {error.strerror or error}; "
            "once that is mended, run the same command again"
        )
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
            "merge": (Merge, Merge.run),
            "verify": (Verify, Verify.run),
            "beton": (Beton, Beton.run),
        },
    )
    shard = commands.add_parser("shard", help="Make a shard set, or finish one that was begun")
    add_commands(shard, "SOURCE", {name: (kind, kind.run) for name, kind in SOURCES.items()})
    return parser.parse_args(arguments)


def _fail(sentence: str) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return 1


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Publish what all tasks of a conversion have made."""

    shards: _Shards
    """Folder of the shard set."""
    max_reject_ratio: RejectRatio = 0.001
    """Stop if more than this share of the images cannot be used."""

    def run(self) -> int:
        manifest = merge(self.shards, max_reject_ratio=self.max_reject_ratio)
        sys.stdout.write(summary(manifest, "merged", self.shards))
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
        sys.stdout.write("".join(f"{damage}\n" for damage in damages))
        if damages:
            return _fail(
                f"{shards} is damaged (listed above: {len(damages)}): copy what is named from a "
                "good copy, or convert the data again into a new folder"
            )
        depth = "every byte" if self.full else "structure only; --full reads every byte"
        sys.stdout.write(f"{shards}: no damage found ({depth})\n")
        return 0


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
        sys.stdout.write(
            f"{self.path}: {samples} samples of encoding {beton.record.encoding} in "
            f"{beton.num_bytes:,} bytes{made}\n"
        )
        return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    open_streams()
    sys.exit(exit_code_after_flush(main()))
