"""Training images a second from real images, by reader, against images that are there already.

    python -m benchmarks.feeding --images DIR [--rounds 5] [--batch 1024] [--json PATH]

Needs a GPU. DIR has JPEGs, such as the 1,000 of the ImageNet sample. Each round trains
`alexnet_fast` for some steps on one GPU from shards of pixels, from shards of JPEGs of 256×256 and
from the same pixels resident on the GPU, beside the bare step of `benchmarks.step_gpu` on one batch
that never changes; ratios to that are taken round by round. Beside it, how many crops of 224×224 a
second are copied from pinned host memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import step_gpu
from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import images_per_second, parser, report, shard_folder, spread, train

WARMUP_STEPS, STEPS = 50, 200
NUM_IMAGES = 20_000
_COPIES = 50


def from_reader(shards: Path, reader: str, run: Path, batch: int) -> float:
    """One run of training, by its own log; threads are those of one GPU of eight."""
    never = ["--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]
    steps = ["--log_every_steps", WARMUP_STEPS, "--max-steps", WARMUP_STEPS + STEPS]
    size = ["--global_batch_size", batch, "--data.decode_threads", 8]
    events = train(
        *(run, "alexnet_fast", "--data.shards", shards, "--data.reader", reader),
        *(*size, *never, *steps),
        num_ranks=1,
    )
    return images_per_second(events)


def copied_crops_per_second(batch: int) -> float:
    """From pinned memory of the host to the GPU."""
    crops = torch.zeros((batch, 224, 224, 3), dtype=torch.uint8).pin_memory()
    target = torch.empty_like(crops, device="cuda")
    for count in (3, _COPIES):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            target.copy_(crops, non_blocking=True)
        torch.cuda.synchronize()
    return _COPIES * batch / (time.perf_counter() - begin)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--rounds", type=int, default=5)
    options_parser.add_argument("--batch", type=int, default=1024)
    options = options_parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: benchmarks.feeding needs a GPU, and there is none")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = link_images(find_images(options.images), root / "images", NUM_IMAGES)
        shards = {
            name: shard_folder(folder, root / name, encoding=name, size=256)
            for name in ("rgb", "jpeg")
        }
        for number in range(options.rounds):
            for name, encoding, reader in (
                ("tars of pixels", "rgb", "tar"),
                ("tars of JPEGs", "jpeg", "tar"),
                ("resident", "rgb", "resident"),
            ):
                run = root / f"run-{reader}-{encoding}-{number}"
                rate = from_reader(shards[encoding], reader, run, options.batch)
                rates.setdefault(name, []).append(rate)
            bare = statistics.median(step_gpu.rates(step_gpu.OurStep, options.batch, "bf16", 1))
            rates.setdefault("one batch again and again", []).append(bare)
            copied = copied_crops_per_second(options.batch)
            rates.setdefault("copied to the GPU", []).append(copied)
    *others, bare_name, _ = rates
    figures = {
        "claim": "training images a second by reader, on one GPU, against the bare step",
        "gpu": torch.cuda.get_device_name(),
        "batch": options.batch,
        "images_per_second": {name: spread(values, 0) for name, values in rates.items()},
        "ratio_to_the_bare_step": {
            name: spread([a / b for a, b in zip(rates[name], rates[bare_name], strict=True)], 3)
            for name in others
        },
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
