"""The options of a conversion, whatever its source."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_prep.convert.assignment import Task
from data_prep.convert.output import ConversionError
from data_prep.convert.shard import ShardJob
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.compiled import HOW_TO_BUILD, is_compiled
from data_prep.shard_set.fields import SEED, Reads, within
from data_prep.shard_set.manifest import Encoding, WrittenEncoding, check_name
from data_prep.shard_set.options import Named, NotAnOption
from data_prep.shard_set.recoding import MAX_RESTART
from data_prep.sources.source import Source

Count = Annotated[int, within(1, 10_000_000)]
RejectRatio = Annotated[float, within(0, 1), Named("--max-reject-ratio", "R")]


def num_processors() -> int:
    """How many this process may use, which under SLURM are fewer than there are."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to convert any source."""

    shards: Annotated[Path, Named("--output", "SHARDS")]
    """Folder of the shard set, new or one that the same command has begun."""
    name: Annotated[str | None, Reads(check_name)] = None
    """What reports call the shard set; if not given, what the source is known as."""
    encoding: WrittenEncoding | None = None
    """Store JPEGs or pixels; if not given, as suits the source."""
    size: Annotated[int | None, within(1, 8192)] = None  # more is unsafe to Pillow
    """Scale the short side to N, crop the middle N×N."""
    jpeg_quality: Annotated[int | None, within(1, 100), Named("--jpeg-quality", "Q")] = None
    """Quality of JPEGs that must be encoded again; 95 if not given."""
    restart: Annotated[int, within(0, MAX_RESTART)] = 0
    """Put a restart marker behind every N MCUs of each JPEG, without loss; 0 adds none."""
    samples_per_shard: Count = 1000
    """Samples in every shard of a split but the last."""
    seed: Annotated[int, SEED] = 0
    """Seed of the shuffle, of what is taken, and of what synthetic draws."""
    workers: Annotated[int, within(1, 512)] = field(default_factory=num_processors)
    """Processes that convert; they do not change the result."""
    max_reject_ratio: RejectRatio = 0.001
    """Stop if more than this share of the images cannot be used."""
    num_tasks: Annotated[int | None, within(1, 10_000)] = None
    """Write an N-th of the shards only; 'merge' publishes them when all are there."""
    task: Annotated[int | None, within(0, 9_999), Named("--task", "I")] = None
    """Which of the N tasks this is: from 0 to N-1."""
    metrics_dir: Path | None = None
    """Folder for a file of metrics, which is rewritten every 2 seconds: RUN_ROOT/conversions, for
    'launch prometheus --run-root RUN_ROOT', or that of node_exporter's textfile collector."""
    ignore_changes: Annotated[bool, NotAnOption] = True
    """Not an option of generated images; all other sources make it one, which is off."""

    @property
    def part(self) -> Task | None:
        """The task to do, or None for all; raises `ConversionError` if there is no such task."""
        if self.num_tasks is None and self.task is None:
            return None
        if self.num_tasks is None or self.task is None:
            raise ConversionError("--num-tasks N and --task I go together: give both or none")
        if self.task >= self.num_tasks:
            raise ConversionError(
                f"--task {self.task} is not below --num-tasks {self.num_tasks}: "
                "tasks are counted from 0"
            )
        return Task(self.task, self.num_tasks)


def shard_job(source: Source, options: Options) -> ShardJob:
    """What all shards have in common; raises `ConversionError` if options do not go together."""
    encoding: Encoding = options.encoding or source.default_encoding
    codec = codec_of(encoding)
    if options.jpeg_quality is not None and codec.default_quality is None:
        raise ConversionError(
            f"--jpeg-quality has no effect with --encoding {encoding}: leave it out"
        )
    if options.restart and not codec.keeps_jpegs:
        raise ConversionError(f"--restart has no effect with --encoding {encoding}: leave it out")
    if options.restart and not is_compiled():
        raise ConversionError(
            f"--restart needs the compiled code of this program, which {HOW_TO_BUILD}"
        )
    return ShardJob(
        reader=source.reader,
        shards=options.shards,
        encoding=encoding,
        size=options.size or (source.default_size if codec.has_fixed_size else None),
        jpeg_quality=options.jpeg_quality or codec.default_quality,
        restart=options.restart,
    )
