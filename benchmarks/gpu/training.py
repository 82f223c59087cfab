"""Whole trainings on one GPU: from images that are resident, to an accuracy, and by each reader."""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import steps
from benchmarks.gpu.results import LeftOut, Results, left_out
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.shards import noise_shards
from benchmarks.gpu.timing import copied_crops_per_second
from benchmarks.measurement import precision_of, spread
from data_prep.beton.beton import write_beton
from data_prep.convert.output import ConversionError
from data_prep.sharding import Cifar10, Folder, Synthetic
from pipeline.config.data import ReaderName
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import CheckpointEvent, EvalEvent, Event, RunEvent, TrainEvent
from pipeline.train.__main__ import main as train


def train_here(run: Path, scale: Scale, recipe: str, *options: object) -> list[Event]:
    """Train in this process and return the run's events; raises `LeftOut` if that fails.

    Without metrics, which need a package.
    """
    steps.start_afresh()
    words = [recipe, "--run-dir", run, "--distributed.device", scale.kind, *options]
    code = train([*map(str, words), "--metrics.enabled", "false"])
    if code != 0:
        raise LeftOut(f"{recipe} failed with exit code {code}; its last line says why")
    return read_events(RunDirectory(run).events)


def train_from(
    shards: object, reader: ReaderName, run: Path, scale: Scale, *options: object
) -> list[Event]:
    """The scale's recipe for some epochs; an evaluation and a checkpoint end it."""
    return train_here(
        run,
        scale,
        *(scale.recipe, "--data.shards", shards, "--data.reader", reader),
        *("--data.decode_threads", min(8, scale.num_workers), "--precision", "bf16"),
        *("--global_batch_size", scale.train_batch, "--optim.learning_rate", steps.LEARNING_RATE),
        *("--epochs", scale.train_epochs, "--evaluation.every_epochs", scale.train_epochs),
        *("--checkpoint.every_epochs", scale.train_epochs),
        *("--log_every_steps", scale.log_every_steps, *options),
    )


def rates_of(events: Sequence[Event]) -> list[float]:
    """Images a second of each log interval but the first, which warms up.

    Those that an evaluation or a checkpoint has cut short are left out.
    """
    rows = itertools.pairwise(of_type(events, TrainEvent))
    intervals = [(row.step - before.step, row.images_per_second) for before, row in rows]
    longest = max((num_steps for num_steps, _ in intervals), default=0)
    return [rate for num_steps, rate in intervals if num_steps == longest]


READY = "images_per_second, inputs ready"
"""What the figure of the step by itself is called."""


def end_to_end(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """What the training of `resident` in `folder` has found so far, beside that part's figures."""
    rates = rates_of(read_events(RunDirectory(folder / "resident").events))
    if not rates:
        return {}
    return {
        "images_per_second, end to end": spread(rates, 0),
        "ratio of the medians": round(statistics.median(rates) / figures[READY]["median"], 3),
    }


def resident(scale: Scale, folder: Path, results: Results) -> None:
    """Planes of 256×256 in the device's memory, end to end, beside the step on ready inputs."""

    ready = functools.partial(steps.our_step, is_ready=True)
    bare = steps.rates(ready, scale.train_batch, "bf16", scale)
    size = scale.stored_pixels
    results.add("images", f"generated: noise of {size}×{size}, encoding yuv420")
    results.add("batch", scale.train_batch)
    results.add(READY, spread(bare, 0))
    shards = noise_shards(folder / "yuv420", scale, "yuv420")
    events = train_from(shards, "resident", folder / "resident", scale)
    (start,), (evaluation,) = of_type(events, RunEvent), of_type(events, EvalEvent)
    for name, figure in end_to_end(folder, results.figures).items():
        results.add(name, figure)
    results.add("images resident", start.num_train_samples)
    results.add("seconds of loading", start.loading_seconds)
    results.add("seconds of compiling", start.compiling_seconds)
    evaluated = evaluation.seen / evaluation.seconds
    results.add("evaluated images_per_second", round(evaluated))
    saved = [event.seconds for event in of_type(events, CheckpointEvent)]
    results.add("seconds of a checkpoint", spread(saved, 3))


def cifar10(scale: Scale, given: Path | None, folder: Path, results: Results) -> None:
    """The recipe `cifar10` to its end: top-1 after each epoch, and how long it took."""
    shards = folder / "cifar10"
    if given is None:
        num_train, num_val = scale.cifar_images
        Synthetic(
            shards=shards, num_train=num_train, num_val=num_val, workers=scale.num_workers
        ).run()
        results.add("images", "generated: shapes of 10 classes, as --cifar10 is not given")
    elif (given / "train").is_dir():
        Folder(shards=shards, input=given, encoding="rgb").run()
        results.add("images", "CIFAR-10, of class folders")
    else:
        Cifar10(shards=shards, input=given, encoding="rgb").run()
        results.add("images", "CIFAR-10")
    source = ("--data.shards", shards, "--data.reader", "resident")
    events = train_here(folder / "cifar10-run", scale, "cifar10", *source, *scale.cifar_options)
    (start,) = of_type(events, RunEvent)
    results.add("num_train", start.num_train_samples)
    results.add("precision", precision_of(events))
    results.add("top1_by_epoch", [event.top1 for event in of_type(events, EvalEvent)])
    results.add("seconds", round(events[-1].time - start.time, 1))
    results.add("images_per_second", spread(rates_of(events), 0))


def feeding(scale: Scale, images: Path | None, folder: Path, results: Results) -> None:
    """Each reader end to end, beside the step on one batch that never changes."""
    bare = statistics.median(steps.rates(steps.our_step, scale.train_batch, "bf16", scale))
    results.add("one batch again and again", round(bare))
    results.add("copied to the device", round(copied_crops_per_second(scale)))
    yuv420 = functools.partial(noise_shards, folder / "yuv420", scale, "yuv420")
    rgb = functools.partial(noise_shards, folder / "rgb", scale, "rgb")
    makers: dict[str, tuple[ReaderName, Callable[[], tuple[object, ...]]]] = {
        "tars of planes": ("tar", lambda: (yuv420(),)),
        "tars of pixels": ("tar", lambda: (rgb(),)),
        "resident pixels": ("resident", lambda: (rgb(),)),
        "planes staged from a URL": ("remote", lambda: _staged(yuv420(), folder / "cache")),
        "tars of JPEGs": ("tar", lambda: (_jpegs(images, folder, scale),)),
        "a .beton of planes": ("beton", lambda: _beton(yuv420(), folder / "planes.beton")),
    }
    for number, (name, (reader, make)) in enumerate(makers.items()):
        try:
            shards, *more = make()
            events = train_from(shards, reader, folder / f"feeding-{number}", scale, *more)
        except (LeftOut, ConversionError, ModuleNotFoundError) as error:
            results.add(name, left_out(error))
            continue
        rates = rates_of(events)
        ratio = round(statistics.median(rates) / bare, 3)
        results.add(name, {"images_per_second": spread(rates, 0), "ratio": ratio})


def _staged(shards: Path, cache: Path) -> tuple[object, ...]:
    """What trains from the same disk by the reader of remote shards."""
    return shards.as_uri(), "--data.cache_dir", cache


def _beton(shards: Path, path: Path) -> tuple[object, ...]:
    """Raises `ConversionError` without ffcv, which writes the file."""
    write_beton(shards, path, sys.stderr)
    return shards, "--data.beton", path


def _jpegs(images: Path | None, folder: Path, scale: Scale) -> Path:
    """Of real images: how fast a JPEG is decoded depends on what it shows."""
    if images is None:
        raise LeftOut("noise is no measure of decoding: give --images DIR, a folder of JPEGs")
    from benchmarks.image_folder import find_images, link_images  # which need Pillow

    num_images = scale.num_images * scale.num_copies
    linked = link_images(find_images(images), folder / "images", num_images)
    shards = folder / "jpeg"
    workers, size = scale.num_workers, scale.stored_pixels
    Folder(shards=shards, input=linked, encoding="jpeg", size=size, workers=workers).run()
    return shards
