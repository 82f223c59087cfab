"""The 2012 network learns, in both layouts: its curves on CIFAR-10 enlarged to 256 pixels.

    python -m benchmarks.learning --images FOLDER [--json PATH]

FOLDER has train/CLASS/* and test/CLASS/*. Of each class the first 1,000 images are trained on and
the first 100 evaluated, four epochs of `alexnet_fast` in batches of 64 at a rate of 0.01: once with
a column on each of two ranks, once with both on one. About half an hour on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import parser, precision_of, report, shard_folder, train
from pipeline.run.event_log import of_type
from pipeline.run.events import EvalEvent, Event, TrainEvent

NUM_TRAIN, NUM_VAL = 1000, 100
NUM_RANKS = {"split": 2, "fused": 1}
OPTIONS = [
    *("--global_batch_size", 64, "--optim.learning_rate", 0.01, "--epochs", 4),
    *("--evaluation.every_epochs", 0.5, "--checkpoint.every_epochs", 0, "--log_every_steps", 20),
]


def choose(images: Path, chosen: Path) -> Path:
    """Links to the first images of each class."""
    for split, number in (("train", NUM_TRAIN), ("test", NUM_VAL)):
        for folder in sorted((images / split).iterdir()):
            (chosen / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:number]:
                (chosen / split / folder.name / path.name).symlink_to(path.resolve())
    return chosen


def curve(events: list[Event]) -> dict[str, Any]:
    trains, evals = of_type(events, TrainEvent), of_type(events, EvalEvent)
    return {
        "training loss": [[round(row.epoch, 3), round(row.loss, 4)] for row in trains],
        "val top-1": [[round(row.epoch, 3), row.top1] for row in evals],
        "val loss": [[round(row.epoch, 3), round(row.loss, 4)] for row in evals],
    }


def figures(events: dict[str, list[Event]]) -> dict[str, Any]:
    return {
        "claim": "the 2012 network learns in both layouts",
        "images": f"CIFAR-10 at 256 pixels, {NUM_TRAIN} of each class, {NUM_VAL} to evaluate",
        "precision": precision_of(next(iter(events.values()))),
        "curves, by epoch": {layout: curve(events[layout]) for layout in events},
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        chosen = choose(options.images, root / "images")
        shards = shard_folder(chosen, root / "shards", encoding="jpeg", size=256)
        events = {
            layout: train(
                root / layout,
                "alexnet_fast",
                *("--data.shards", shards, "--model.columns", layout, *OPTIONS),
                num_ranks=num_ranks,
            )
            for layout, num_ranks in NUM_RANKS.items()
        }
    report(figures(events), options.json)


if __name__ == "__main__":
    main()
