"""Top-1 after 10 epochs of CIFAR-10: `cifar10_blog` and `cifar10`, 2 ranks, several seeds.

    python -m benchmarks.accuracy --images FOLDER [--seeds 3] [--json PATH]

FOLDER has train/CLASS/* and test/CLASS/*. The evaluation is exact: 10,000 images, each once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import parser, report, shard_folder, spread, train

RECIPES = ("cifar10_blog", "cifar10")


def accuracies(recipe: str, shards: Path, run: Path, seed: int) -> list[float]:
    """Val top-1 after each epoch."""
    events = train(run, recipe, "--data.shards", shards, "--seed", seed)
    return [event["top1"] for event in events if event["kind"] == "eval"]


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--seeds", type=int, default=3)
    options = options_parser.parse_args()
    figures: dict[str, Any] = {"claim": "val top-1 on CIFAR-10 after 10 epochs, 2 ranks"}
    with tempfile.TemporaryDirectory() as scratch:
        shards = shard_folder(options.images, Path(scratch) / "shards")
        for recipe in RECIPES:
            curves = [
                accuracies(recipe, shards, Path(scratch) / f"{recipe}-{seed}", seed)
                for seed in range(options.seeds)
            ]
            figures[recipe] = {
                "final_top1": spread([curve[-1] for curve in curves]),
                "best_top1": spread([max(curve) for curve in curves]),
                "top1_by_epoch": curves,
            }
    report(figures, options.json)


if __name__ == "__main__":
    main()
