"""Training images a second on CIFAR-10, 2 ranks, against one plain PyTorch script.

    python -m benchmarks.throughput --images FOLDER [--rounds 5] [--json PATH]

FOLDER has train/CLASS/* and test/CLASS/*. Each round runs, one after the other on the same cores,
the plain script without and with two loader workers, our `cifar10_blog` (the same job) and our
`cifar10`. The ratios are taken round by round, against the faster of the two plain ones.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measurement import (
    images_per_second,
    parser,
    phase_share,
    precision_of,
    report,
    shard_folder,
    spread,
    train,
)

WARMUP_STEPS, STEPS = 50, 200


def plain(images: Path, workers: int) -> float:
    command = [sys.executable, "-m", "benchmarks.rivals.blog_pytorch", str(images)]
    counts = ["--warmup-steps", str(WARMUP_STEPS), "--steps", str(STEPS)]
    answer = subprocess.run(
        [*command, "--workers", str(workers), *counts], check=True, capture_output=True, text=True
    )
    return float(answer.stdout)


def ours(recipe: str, shards: Path, run: Path) -> tuple[float, float, str]:
    """Images a second, the share of waiting for data, and the precision."""
    never = ["--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]
    steps = ["--log_every_steps", WARMUP_STEPS, "--max-steps", WARMUP_STEPS + STEPS]
    events = train(run, recipe, "--data.shards", shards, *never, *steps)
    return images_per_second(events), phase_share(events, "data_wait"), precision_of(events)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--rounds", type=int, default=5)
    options = options_parser.parse_args()
    rates: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {"cifar10_blog": [], "cifar10": []}
    precisions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        shards = shard_folder(options.images, Path(scratch) / "shards")
        for number in range(options.rounds):
            for workers in (0, 2):
                rate = plain(options.images, workers)
                rates.setdefault(f"plain PyTorch, {workers} workers", []).append(rate)
            for recipe in waits:
                rate, wait, precisions[recipe] = ours(
                    recipe, shards, Path(scratch) / f"{recipe}-{number}"
                )
                rates.setdefault(recipe, []).append(rate)
                waits[recipe].append(wait)
    best = [max(pair) for pair in zip(*list(rates.values())[:2], strict=True)]
    figures = {
        "claim": "training images a second, 2 ranks, against one plain PyTorch script",
        "images_per_second": {name: spread(values, 0) for name, values in rates.items()},
        "ratio_to_plain": {
            name: spread([a / b for a, b in zip(rates[name], best, strict=True)], 2)
            for name in waits
        },
        "precision": precisions,
        "data_wait_share": {name: spread(values) for name, values in waits.items()},
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
