"""Top-1 after the 10 epochs of a CIFAR-10 recipe, 2 ranks, several seeds.

    python -m benchmarks.accuracy RECIPE --images FOLDER [--seeds 3] [--json PATH]

FOLDER has train/CLASS/* and test/CLASS/*. The evaluation is exact: 10,000 images, each once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.measurement import parser, precision_of, report, shard_folder, spread, train
from pipeline.run.event_log import of_type
from pipeline.run.events import EvalEvent, Event


def accuracies(events: list[Event]) -> list[float]:
    """Val top-1 after each epoch."""
    return [event.top1 for event in of_type(events, EvalEvent)]


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("recipe", choices=("cifar10_blog", "cifar10"))
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--seeds", type=int, default=3)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards = shard_folder(options.images, Path(scratch) / "shards")
        runs = [
            train(
                Path(scratch) / f"run-{seed}",
                *(options.recipe, "--data.shards", shards, "--seed", seed),
            )
            for seed in range(options.seeds)
        ]
    curves = [accuracies(events) for events in runs]
    figures = {
        "claim": f"val top-1 on CIFAR-10 after 10 epochs of {options.recipe}, 2 ranks",
        "precision": precision_of(runs[0]),
        "final_top1": spread([curve[-1] for curve in curves]),
        "best_top1": spread([max(curve) for curve in curves]),
        "top1_by_epoch": curves,
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
