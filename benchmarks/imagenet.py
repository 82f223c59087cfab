"""The sealed ImageNet recipes, from shards to PASS or FAIL, for whoever has ILSVRC-2012.

    python -m benchmarks.imagenet --shards SHARDS --run-root RUNS [--gpus 8] [--dry-run]

Trains each recipe with `launch local` as it is written, evaluates its last checkpoint exactly, one
view and ten views of each image, and writes `RUNS/result.md`, one page to send back, and
`RUNS/result.json`. The same command goes on after an interruption. Only the last checkpoint counts,
so val chooses nothing.

It takes ILSVRC-2012 with all its images and nothing else. `--dry-run` takes any shard set with a
few images and takes two steps of small batches: it shows that the way to the result works, and has
no verdict. docs/benchmarks.md says where the limits and the floors come from.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.imagenet_result import BANDS, LIMITS, Count, Outcome, page
from benchmarks.measurement import environment, parser, report, torchrun
from data_prep.shard_set.manifest import Manifest, ShardSetError, manifest_sha256, read_manifest
from pipeline.config.recipes import recipe_config
from pipeline.config.saved import to_json
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import EvalEvent, Event, RunEvent, TrainEvent
from pipeline.train.provenance import git_revision

NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
"""Of ILSVRC-2012."""

DRY_OPTIONS = (
    *("--max-steps", 2, "--global_batch_size", 16, "--log_every_steps", 1),
    *("--evaluation.block_size", 8),
)


def check_shards(manifest: Manifest, shards: str) -> None:
    """Raise `ShardSetError` if it is not the whole of ILSVRC-2012."""
    train, val = (manifest.split(name).num_samples for name in ("train", "val"))
    found = (manifest.num_classes, train, val)
    if found != (NUM_CLASSES, NUM_TRAIN, NUM_VAL):
        raise ShardSetError(
            f"{shards} has {found[0]:,} classes, {found[1]:,} images in train and {found[2]:,} in "
            f"val; ILSVRC-2012 has {NUM_CLASSES:,}, {NUM_TRAIN:,} and {NUM_VAL:,}: convert it all "
            "with 'python -m data_prep shard imagenet', or give --dry-run to try the way"
        )


def train_and_count(
    recipe: str, shards: str, run: RunDirectory, num_gpus: int, *, is_dry: bool
) -> Outcome:
    """Train the recipe to its end, from wherever the run is, and evaluate its last checkpoint.

    Raises `subprocess.CalledProcessError` if training or an evaluation fails or is stopped, and
    `ValueError` if the last checkpoint is not there.
    """
    num_ranks = max(num_gpus, 1)
    words = [recipe, "--data.shards", shards, "--run-dir", run.path]
    words += DRY_OPTIONS if is_dry else ()
    launcher = [sys.executable, "-m", "launch", "local", "--nproc", num_ranks, *words]
    _run(launcher)
    events = read_events(run.events)
    counts = []
    for views in BANDS:
        options = ["--run-dir", run.path, "--views", views, "--json"]
        answer = json.loads(_run(torchrun(num_ranks, "pipeline.evaluate", *options)))
        last = of_type(events, TrainEvent)[-1].step
        if answer["step"] != last:
            raise ValueError(
                f"{answer['checkpoint']} is of step {answer['step']:,}, and {run.path} has done "
                f"{last:,}: its last checkpoint is gone; restore it from a copy"
            )
        numbers = {name: answer[name] for name in ("views", "correct1", "correct5")}
        counts.append(Count(num_images=answer["seen"], **numbers))
    epochs = [row for row in of_type(events, EvalEvent) if row.by == "train"]
    return Outcome(
        recipe=recipe,
        counts=tuple(counts),
        curve=tuple((round(row.epoch, 3), row.top1) for row in epochs),
        facts=_facts(recipe, events, launcher),
    )


def _run(command: Sequence[object]) -> str:
    """The last line on its standard output, all of which is shown on standard error."""
    last = ""
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stderr.write(line)
            last = line
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return last


def _facts(recipe: str, events: list[Event], launcher: Sequence[object]) -> dict[str, Any]:
    starts, trains = of_type(events, RunEvent), of_type(events, TrainEvent)
    return {
        "command": " ".join(map(str, ["python", *launcher[1:]])),
        "configuration": to_json(recipe_config(recipe)),
        "starts": len(starts),
        "ranks": starts[-1].world_size,
        "device": starts[-1].device,
        "precision": starts[-1].precision,
        "steps": trains[-1].step,
        "epochs": round(trains[-1].epoch, 3),
        "hours from start to end": round((events[-1].time - events[0].time) / 3600, 3),
        "images a second": round(trains[-1].images_per_second, 1),
    }


def main() -> int:
    options_parser = parser(__doc__)
    options_parser.add_argument("--shards", required=True, help="a folder of shards")
    options_parser.add_argument("--run-root", type=Path, required=True, help="where the runs go")
    options_parser.add_argument("--gpus", type=int, default=8, help="0: one rank on the CPU")
    options_parser.add_argument("--recipes", nargs="+", choices=tuple(LIMITS), default=[*LIMITS])
    options_parser.add_argument("--dry-run", action="store_true")
    options = options_parser.parse_args()
    try:
        shards = Path(options.shards)
        manifest = read_manifest(shards)
        if not options.dry_run:
            check_shards(manifest, options.shards)
    except (OSError, ShardSetError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    options.run_root.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    document = environment() | {
        "dry_run": options.dry_run,
        "git_revision": git_revision(),
        "shard_set": manifest.title,
        "manifest_sha256": manifest_sha256(shards),
    }
    for recipe in options.recipes:
        run = RunDirectory(options.run_root / (recipe + "-dry" * options.dry_run))
        try:
            made = train_and_count(
                recipe, options.shards, run, options.gpus, is_dry=options.dry_run
            )
        except subprocess.CalledProcessError as error:
            sys.stderr.write(
                f"error: '{' '.join(error.cmd[1:4])} …' ended with exit code {error.returncode}; "
                "what it wrote is above, and this command goes on from there\n"
            )
            return error.returncode
        outcomes.append(made)
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        report(document | {"recipes": rows}, options.run_root / "result.json")
        (options.run_root / "result.md").write_text(page(outcomes, document))
    return int(not options.dry_run and any(outcome.faults() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
