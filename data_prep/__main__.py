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
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, assert_never

from data_prep.beton.beton import write_beton
from data_prep.convert.assignment import Task
from data_prep.convert.conversion import Options, convert, convert_part
from data_prep.convert.images import JPEG_QUALITY
from data_prep.convert.merge import merge
from data_prep.convert.output import ConversionError
from data_prep.convert.progress import Progress
from data_prep.shard_set.files import path_option
from data_prep.shard_set.manifest import ENCODINGS, Encoding, Manifest, ShardSetError, check_name
from data_prep.shard_set.parser import Parser
from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from data_prep.sources.cifar import open_cifar10, open_cifar100
from data_prep.sources.folder import open_folder
from data_prep.sources.imagenet import NUM_CLASSES, open_imagenet
from data_prep.sources.source import Source, SourceError
from data_prep.sources.synthetic import make_synthetic
from data_prep.verify.verify import find_damages

_INTERRUPTED = 130
_MAX_COUNT = 10_000_000
_MAX_SIZE = 8192  # a square of more would be more pixels than Pillow deems safe
_MAX_WORKERS = 512
_MAX_TASKS = 10_000


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
    return _parser().parse_args(arguments)


def _fail(sentence: str) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="python -m data_prep", description="Make a shard set from raw images, or check one."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shard = commands.add_parser("shard", help="make a shard set, or finish one that was begun")
    sources = shard.add_subparsers(required=True, metavar="SOURCE")
    _add_source(
        sources,
        "folder",
        "images in train/CLASS/* and val/CLASS/* or test/CLASS/*",
        lambda options: open_folder(options.input),
    )
    archive = "the official Python archive, or the folder unpacked from it"
    _add_source(sources, "cifar10", archive, lambda options: open_cifar10(options.input))
    _add_source(sources, "cifar100", archive, lambda options: open_cifar100(options.input))
    imagenet = _add_source(
        sources,
        "imagenet",
        "the folder of ILSVRC2012's archives, packed or unpacked",
        lambda options: open_imagenet(options.input, num_classes=options.num_classes),
    )
    imagenet.add_argument(
        "--num-classes",
        type=_between(1, _MAX_COUNT),
        default=NUM_CLASSES,
        metavar="N",
        help="that the input must have (%(default)s)",
    )
    synthetic = _add_source(
        sources, "synthetic", "drawn shapes of 10 classes", _make_synthetic, has_input=False
    )
    synthetic.add_argument("--num-train", type=_between(1, _MAX_COUNT), default=10_000, metavar="N")
    synthetic.add_argument("--num-val", type=_between(1, _MAX_COUNT), default=2_000, metavar="N")
    join = commands.add_parser("merge", help="publish what all tasks of a conversion have made")
    join.set_defaults(run=_merge)
    join.add_argument("shards", type=path_option, metavar="SHARDS")
    _add_max_reject_ratio(join)
    check = commands.add_parser("verify", help="find all that is wrong with a shard set")
    check.set_defaults(run=_verify)
    check.add_argument("shards", type=path_option, metavar="SHARDS")
    check.add_argument(
        "--full", action="store_true", help="read every byte and decode every image, too"
    )
    _add_beton(commands)
    return parser


def _add_beton(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    beton = commands.add_parser("beton", help="write a shard set into one file of ffcv's format")
    beton.set_defaults(run=_beton)
    beton.add_argument("shards", type=path_option, metavar="SHARDS")
    beton.add_argument("path", type=path_option, metavar="OUT.beton")


def _add_source(
    sources: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    what: str,
    open_source: Callable[[argparse.Namespace], Source],
    *,
    has_input: bool = True,
) -> argparse.ArgumentParser:
    parser = sources.add_parser(name, help=what)
    parser.set_defaults(run=_shard, open_source=open_source, ignore_changes=False)
    if has_input:
        parser.add_argument("--input", type=path_option, required=True, metavar="PATH", help=what)
        parser.add_argument(
            "--ignore-changes",
            action="store_true",
            help="keep finished shards though images in them were replaced since",
        )
    parser.add_argument(
        "--output",
        dest="shards",
        type=path_option,
        required=True,
        metavar="SHARDS",
        help="folder of the shard set, new or one that the same command has begun",
    )
    parser.add_argument(
        "--name",
        type=_shard_set_name,
        metavar="NAME",
        help="what reports call the shard set (as the source is known)",
    )
    parser.add_argument(
        "--encoding", choices=ENCODINGS, help="store JPEGs or pixels (as suits the source)"
    )
    parser.add_argument(
        "--size",
        type=_between(1, _MAX_SIZE),
        metavar="N",
        help="scale the short side to N, crop the middle N×N",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=_between(1, 100),
        metavar="Q",
        help=f"of images that must be encoded anew ({JPEG_QUALITY})",
    )
    parser.add_argument(
        "--samples-per-shard",
        type=_between(1, _MAX_COUNT),
        default=1000,
        metavar="N",
        help="in every shard of a split but the last (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_between(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of the shuffle, and of what synthetic draws (%(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_between(1, _MAX_WORKERS),
        default=_num_processors(),
        metavar="N",
        help="processes; they do not change the result (%(default)s)",
    )
    _add_max_reject_ratio(parser)
    parser.add_argument(
        "--num-tasks",
        type=_between(1, _MAX_TASKS),
        metavar="N",
        help="write an N-th of the shards only; 'merge' publishes them when all are there",
    )
    parser.add_argument(
        "--task", type=_between(0, _MAX_TASKS - 1), metavar="I", help="which: from 0 to N-1"
    )
    return parser


def _add_max_reject_ratio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-reject-ratio",
        type=_between(0, 1, float),
        default=0.001,
        metavar="R",
        help="stop if more than this share of the images cannot be used (%(default)s)",
    )


def _make_synthetic(options: argparse.Namespace) -> Source:
    return make_synthetic(
        seed=options.seed,
        size=options.size or 32,
        num_train=options.num_train,
        num_val=options.num_val,
    )


def _between(low: float, high: float, kind: type[int] | type[float] = int) -> Callable[[str], Any]:
    """A converter of arguments to numbers of that range."""

    def convert_argument(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from {low} to {high}")

    return convert_argument


def _shard_set_name(text: str) -> str:
    try:
        return check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shard(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    task = _task(options)
    source: Source = options.open_source(options)
    how = _conversion_options(options, source)
    try:
        options.shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(
            f"--output {options.shards} cannot be made a folder: {error.strerror}; give another one"
        ) from None
    if task is not None:
        num_shards, num_read = convert_part(source, options.shards, how, task, sys.stderr)
        sys.stdout.write(
            f"{options.shards}: {num_shards} {'shard' if num_shards == 1 else 'shards'} of {task} "
            f"{'is' if num_shards == 1 else 'are'} there "
            f"({_rate(num_read, begin)}); after the last task run "
            f"'python -m data_prep merge {options.shards}'\n"
        )
        return 0
    manifest, num_read = convert(source, options.shards, how, sys.stderr)
    sys.stdout.write(_summary(manifest, _rate(num_read, begin), options.shards))
    return 0


def _task(options: argparse.Namespace) -> Task | None:
    if options.num_tasks is None and options.task is None:
        return None
    if options.num_tasks is None or options.task is None:
        raise ConversionError("--num-tasks N and --task I go together: give both or none")
    if options.task >= options.num_tasks:
        raise ConversionError(
            f"--task {options.task} is not below --num-tasks {options.num_tasks}: "
            "tasks are counted from 0"
        )
    return Task(options.task, options.num_tasks)


def _conversion_options(options: argparse.Namespace, source: Source) -> Options:
    encoding: Encoding = options.encoding or source.default_encoding
    match encoding:
        case "rgb":
            if options.jpeg_quality is not None:
                raise ConversionError("--jpeg-quality says nothing of --encoding rgb: leave it out")
            size, jpeg_quality = options.size or source.default_rgb_size, None
        case "jpeg":
            size, jpeg_quality = options.size, options.jpeg_quality or JPEG_QUALITY
        case unknown:
            assert_never(unknown)
    return Options(
        encoding=encoding,
        size=size,
        jpeg_quality=jpeg_quality,
        samples_per_shard=options.samples_per_shard,
        seed=options.seed,
        num_workers=options.workers,
        max_reject_ratio=options.max_reject_ratio,
        ignore_changes=options.ignore_changes,
        name=options.name,
    )


def _merge(options: argparse.Namespace) -> int:
    manifest = merge(options.shards, max_reject_ratio=options.max_reject_ratio)
    sys.stdout.write(_summary(manifest, "merged", options.shards))
    return 0


def _verify(options: argparse.Namespace) -> int:
    shards: Path = options.shards
    with contextlib.closing(Progress("verifying", "shards", sys.stderr)) as progress:
        damages = find_damages(
            shards, full=options.full, num_threads=_num_processors(), show=progress.show
        )
    sys.stdout.write("".join(f"{damage}\n" for damage in damages))
    if damages:
        return _fail(
            f"{shards} is damaged (listed above: {len(damages)}): copy what is named from a good "
            "copy, or convert the data again into a new folder"
        )
    depth = "every byte" if options.full else "structure only; --full reads every byte"
    sys.stdout.write(f"{shards}: no damage found ({depth})\n")
    return 0


def _beton(options: argparse.Namespace) -> int:
    try:
        beton = write_beton(options.shards, options.path, sys.stderr)
    except KeyboardInterrupt:
        _fail(f"stopped; {options.path} was not written, the same command begins anew")
        return _INTERRUPTED
    samples = " + ".join(f"{count:,} {name}" for name, count in beton.record.splits.items())
    made = "" if beton.is_new else " (complete already)"
    sys.stdout.write(
        f"{options.path}: {samples} samples of encoding {beton.record.encoding} in "
        f"{beton.num_bytes:,} bytes{made}\n"
    )
    return 0


def _num_processors() -> int:
    """How many this process may use, which under SLURM are fewer than there are."""
    return len(os.sched_getaffinity(0))


def _rate(num_read: int, begin: float) -> str:
    seconds = time.monotonic() - begin
    return f"{num_read / seconds:,.0f} samples a second" if num_read else "complete already"


def _summary(manifest: Manifest, made: str, shards: Path) -> str:
    splits = manifest.splits.values()
    samples = " + ".join(f"{split.num_samples:,} {split.name}" for split in splits)
    return (
        f"{shards}: {samples} samples of {manifest.num_classes} classes in "
        f"{sum(len(split.filenames) for split in splits)} shards ({made}); "
        f"rejected: {_reasons(manifest.rejected)}; rewritten: {_reasons(manifest.rewritten)}\n"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    open_streams()
    sys.exit(exit_code_after_flush(main()))
