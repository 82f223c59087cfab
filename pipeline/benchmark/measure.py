"""Measures the readers that are possible for a shard set on this host, and says which to choose.

    python -m pipeline.data.benchmark SHARDS [--recipe RECIPE] [--beton FILE]
        [--cache-dir DIR] [--seconds 5] [--step-rate IMAGES_PER_SECOND]

Each reader is opened as training opens it, in a process of its own, with one thread and with as
many as this process may use. One pass over the data comes first, or as much of it as the time
allows: what is measured is reading from the page cache, not from the disk. The step rate is that of
the recipe's network on one device of this host, on images that are there already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch

from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.fields import Reads, above
from data_prep.shard_set.manifest import Manifest
from data_prep.shard_set.options import Named, read_options
from data_prep.shard_set.streams import say
from pipeline.benchmark.choice import Measurement, candidates, choose, table
from pipeline.config.command_line import with_values
from pipeline.config.data import is_url, location_option
from pipeline.config.recipes import RECIPES, recipe_config, recipe_name
from pipeline.config.schema import Config, DistributedConfig
from pipeline.data.open import Batches, ImageSize, input_size, open_data, take_crops
from pipeline.model.build import build_model, image_size
from pipeline.optim.memory import bytes_of_training
from pipeline.optim.precision import arithmetic_of, resolve, type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import exit_code_of, sentence_of
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh

_ENDLESS = 1 << 40
_WARM_UP_STEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Measure the readers that are possible here and say which to choose."""

    shards: Annotated[str, Reads(location_option), Named("SHARDS")]
    """Directory or URL of the shard set."""
    recipe: Annotated[str | None, Reads(recipe_name)] = None
    """The recipe to train; if not given, the first that takes these images."""
    beton: Annotated[str | None, Reads(location_option), Named("--beton", "FILE")] = None
    """The shard set's .beton."""
    cache_dir: Annotated[str | None, Reads(location_option), Named("--cache-dir", "DIR")] = None
    """Where the shards at a URL are staged."""
    seconds: Annotated[float, above(0)] = 5.0
    """How long each reader is measured."""
    step_rate: Annotated[float | None, above(0)] = None
    """Images a second that one device trains on; measured if not given."""


def measure(config: Config, seconds: float) -> Measurement:
    """Read with one reader for `seconds`, after one pass that takes no longer."""
    before = _private_bytes()
    with (
        contextlib.ExitStack() as resources,
        connect(LaunchEnvironment(), config.distributed) as world,
    ):
        data = open_data(config, world.device, resources)
        mesh = build_mesh(world, "fused", config.distributed.timeout_seconds)
        plan = data.plan(mesh.num_replicas)
        resolved = resolve(config, None, [arithmetic_of(world.device)])
        sizes = data.manifest.num_classes, plan.local_batch_size
        needs = partial(bytes_of_training, resolved, *sizes)
        open_batches = data.open_batches(plan, world, mesh, needs)
        batches = resources.enter_context(open_batches(0, _ENDLESS))
        _read(batches, world.device, plan.num_samples, seconds)
        begin, cpu = time.perf_counter(), time.process_time()
        num_read = _read(batches, world.device, None, seconds)
        passed, used = time.perf_counter() - begin, time.process_time() - cpu
        return Measurement(
            reader=config.data.reader,
            num_threads=config.data.decode_threads,
            images_per_second=num_read / passed,
            cores=used / passed,
            private_bytes=max(0, _private_bytes() - before),
        )


def _read(batches: Batches, device: torch.device, at_most: int | None, seconds: float) -> int:
    """Take crops for `seconds`, or until `at_most` have come; returns their number."""
    num_read, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end and (at_most is None or num_read < at_most):
        batch = next(batches)
        images, _ = batch.to(device)
        take_crops(images, batch.crop_windows)
        num_read += batch.num_valid
    _wait(device)
    return num_read


def _private_bytes() -> int:
    """Without files in memory, which the page cache has anyway."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty:"))


def step_rate(config: Config, seconds: float) -> tuple[float, str]:
    """Images a second of training on one batch in memory, and the device."""
    with (
        contextlib.ExitStack() as resources,
        connect(LaunchEnvironment(), config.distributed) as world,
    ):
        data = open_data(config, world.device, resources)
        size = data.input_size()
        network = build_model(config.model, data.manifest.num_classes, size)
        mesh = build_mesh(world, "fused", config.distributed.timeout_seconds)
        config = resolve(config, None, world.all_gather_object(arithmetic_of(world.device)))
        replica = Replica(network, config, world, mesh)
        augmenter = data.augmenter(data.normalizer(), type_of(config.resolved_precision))
        count = config.global_batch_size
        images = torch.zeros((count, *size, 3), dtype=torch.uint8, device=world.device)
        zeros = torch.zeros(count, dtype=torch.int64, device=world.device)
        samples = zeros.cpu().numpy()

        def step() -> None:
            inputs = augmenter(images, samples, 0)
            replica.add_gradients(inputs, zeros, zeros, step_samples=count, is_last=True)
            replica.update()

        for _ in range(_WARM_UP_STEPS):
            step()
        _wait(world.device)
        num_steps, begin = 0, time.perf_counter()
        while num_steps == 0 or time.perf_counter() - begin < seconds:
            step()
            _wait(world.device)
            num_steps += 1
        name = torch.cuda.get_device_name() if world.device.type == "cuda" else "this CPU"
        rate = num_steps * count / (time.perf_counter() - begin)
        return rate, f"{name}, {config.resolved_precision}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitting_recipe(size: ImageSize | None) -> str:
    """The first recipe that trains on images of `size`; None: they differ in it.

    Raises `ValueError` if none does.
    """
    for name in RECIPES:
        config = recipe_config(name)
        if size is None:
            config = with_scaled_crops(config)
        with contextlib.suppress(ValueError):
            if input_size(config.augment, size) == (image_size(config.model.name),) * 2:
                return name
    assert size is not None
    raise ValueError(
        f"no recipe trains on images of {size[0]}×{size[1]} as it is: convert the shard set with "
        "--size 32 or --size 256, or give --recipe with a --step-rate"
    )


def configured(recipe: str, options: Options) -> Config:
    """The recipe on the shard set; raises `ValueError` if that cannot be."""
    reader = "remote" if is_url(options.shards) else "tar"
    values = {"data.shards": options.shards, "data.reader": reader}
    if options.cache_dir is not None:
        values["data.cache_dir"] = options.cache_dir
    flags = {"data.shards": "SHARDS", "data.cache_dir": "--cache-dir"}
    config = with_values(recipe_config(recipe), values, flags)
    # One rank alone, on the host's memory or one device: what ranks share is not measured here.
    return dataclasses.replace(config, distributed=DistributedConfig())


def with_scaled_crops(config: Config) -> Config:
    """For images of many sizes: they need this crop, and have no mean image."""
    augment = dataclasses.replace(config.augment, crop_place="random_resized", normalize="mean_std")
    return dataclasses.replace(config, augment=augment)


def run(options: Options) -> int:
    config = configured(options.recipe or next(iter(RECIPES)), options)
    manifest = open_data(config, torch.device("cpu"), contextlib.ExitStack()).manifest
    recipe = options.recipe or fitting_recipe(manifest.image_size)
    config = configured(recipe, options)
    if manifest.image_size is None:
        config = with_scaled_crops(config)
        say("the images differ in size: --augment.crop_place random_resized is measured")
    input_size(config.augment, manifest.image_size)
    if not is_compiled():
        say("data_prep.shard_set._pixels was not compiled: JPEGs and pixels are read more slowly")
    rate, device = options.step_rate, "at the rate given"
    if rate is None:
        rate, device = step_rate(config, options.seconds)
    say(f"training takes {rate:,.0f} images a second ({device}), {recipe}")
    found = list(_measure_all(config, manifest, options))
    say(*table(found, rate, device).splitlines())
    say(*choose(found, rate, max(1, torch.cuda.device_count())).splitlines())
    return 0


def _measure_all(config: Config, manifest: Manifest, options: Options) -> Iterator[Measurement]:
    """Measure each reader; print which cannot be measured, and why."""
    for candidate in candidates(config, manifest, options.beton):
        if isinstance(candidate, str):
            say(candidate)
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                yield process.submit(measure, candidate, options.seconds).result()
            except (OSError, ValueError, RuntimeError) as error:
                if candidate.data.reader == config.data.reader:
                    raise
                reason = sentence_of(error)
                say(f"{candidate.data.reader} is left out: {reason}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.data.benchmark", Options, arguments)
    return exit_code_of(lambda: run(options))
