"""Few images of new classes: from the weights of a run on other classes, and from fresh ones.

    python -m benchmarks.finetune --images FOLDER [--seeds 3] [--json PATH]

FOLDER has train/CLASS/* and test/CLASS/* of CIFAR-10. `cifar10` learns five of its classes with all
of their images; the other five are then learned with few, and counted on all of their 5,000 test
images: by `finetune`, also with frozen convolutions, and from scratch by `cifar10`, in batches of
the same size, for twice as many epochs, at the rate that was best of `RATES_TRIED`. One rank.
`--first` names a finished first run, which is then not trained again.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import (
    parser,
    precision_of,
    report,
    shard_folder_command,
    spread,
    train,
)
from pipeline.config.recipes import finetune
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import EvalEvent, Event

KNOWN = "automobile,bird,cat,frog,ship"
NEW = "airplane,deer,dog,horse,truck"
IMAGES_PER_CLASS = (20, 100)
RATES_TRIED = (0.2, 0.1, 0.05, 0.02, 0.01)
"""Of training from scratch, with one seed and 100 images of each class."""
BEST_RATE = 0.05


def shard(images: Path, shards: Path, classes: str, *options: object) -> Path:
    words = ("--classes", classes, *options)
    subprocess.run(
        shard_folder_command(images, shards, *words, encoding="rgb", size=None), check=True
    )
    return shards


def learn(run: Path, recipe: str, shards: Path, *options: object) -> list[Event]:
    words = ("--data.shards", shards, "--data.reader", "resident", *options)
    return train(run, recipe, *words, "--evaluation.every_epochs", 0, num_ranks=1)


def counted(events: list[Event]) -> EvalEvent:
    """The evaluation after the last step."""
    return of_type(events, EvalEvent)[-1]


def correct(runs: list[list[Event]]) -> dict[str, Any]:
    """Right answers of each run, and their share."""
    found = [counted(events) for events in runs]
    assert {event.seen for event in found} == {found[0].expected}
    return {
        "correct": [event.correct1 for event in found],
        "of": found[0].expected,
        "top1": spread([event.top1 for event in found]),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--seeds", type=int, default=3)
    options_parser.add_argument("--first", type=Path, metavar="RUN")
    options = options_parser.parse_args()
    config = finetune()
    longer = ("--epochs", 2 * config.epochs, "--global_batch_size", config.global_batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        first = options.first or root / "first"
        if options.first is None:
            learn(first, "cifar10", shard(options.images, root / "known", KNOWN))
        begun = read_events(RunDirectory(first).events)
        ways: dict[str, tuple[str, Sequence[object]]] = {
            "finetune": ("finetune", ("--init", first)),
            "finetune --freeze conv": ("finetune", ("--init", first, "--freeze", "conv")),
            "from scratch": ("cifar10", (*longer, "--optim.learning_rate", BEST_RATE)),
        }
        found = {}
        for number in IMAGES_PER_CLASS:
            few = shard(options.images, root / f"few-{number}", NEW, "--limit-per-class", number)
            found[f"{number} images of each class"] = {
                name: correct(
                    [
                        learn(root / f"{number}-{name}-{seed}", recipe, few, *words, "--seed", seed)
                        for seed in range(options.seeds)
                    ]
                )
                for name, (recipe, words) in ways.items()
            }
    figures = {
        "claim": f"val top-1 on {NEW} of CIFAR-10 after {config.epochs:g} epochs on few images",
        "precision": precision_of(begun),
        "begun with": f"cifar10 on {KNOWN}: {counted(begun).correct1} of {counted(begun).seen}",
        "rates tried from scratch": RATES_TRIED,
        "rate from scratch": BEST_RATE,
        **found,
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
