"""What saving costs the steps: written in the background against waited for, 2 ranks.

    python -m benchmarks.saving [--rounds 3] [--json PATH]

Rounds alternate both on generated images, with the network of 2012: 244 MB of weights and as much
momentum in each checkpoint. From the rows of each run come how long the steps waited for a save,
how much longer a step took while one was written, and the time that a save took from the steps in
all; shares are of one save every 30 s.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measurement import parser, report, shard_synthetic, spread, train
from pipeline.run.event_log import of_type
from pipeline.run.events import CheckpointEvent, Event, TrainEvent

BATCH, STEPS_PER_SAVE, NUM_SAVES = 16, 20, 4
SAVE_EVERY_SECONDS = 30.0


@dataclass
class Cost:
    """Of all saves of one kind but the last ones of their runs, which are always waited for."""

    waited: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    slowed: list[float] = field(default_factory=list)
    """A step's time while a save was in flight by that of the run's other steps."""
    lost: list[float] = field(default_factory=list)
    """Seconds of a save: waiting, and what the steps took longer while it was written."""

    def add(self, events: Sequence[Event]) -> None:
        """Those of one run."""
        trains, saves = of_type(events, TrainEvent), of_type(events, CheckpointEvent)[:-1]
        ends = {row.step: row.time for row in trains}
        seconds = {row.step: sum(v or 0.0 for v in row.phase_seconds.values()) for row in trains}
        flights = [
            [step for step, end in ends.items() if step > save.step and end <= save.time]
            for save in saves
        ]
        # The first steps are still warming up, and one that follows a save finds cold caches.
        busy = {1, 2}.union(*flights, (save.step + 1 for save in saves))
        quiet = [value for step, value in seconds.items() if step not in busy]
        usual = statistics.median(quiet)
        for save, flight in zip(saves, flights, strict=True):
            waited = save.seconds if save.waited_seconds is None else save.waited_seconds
            self.waited.append(waited)
            self.written.append(save.seconds)
            self.slowed += [seconds[step] / usual for step in flight]
            self.lost.append(waited + sum(seconds[step] - usual for step in flight))

    def figures(self) -> dict[str, object]:
        return {
            "steps_waited_seconds": spread(self.waited),
            "writing_seconds": spread(self.written),
            "step_while_writing_ratio": spread(self.slowed) if self.slowed else None,
            "seconds_taken_from_steps": spread(self.lost),
            "share_of_30_s_waited": round(statistics.median(self.waited) / SAVE_EVERY_SECONDS, 5),
            "share_of_30_s_in_all": round(statistics.median(self.lost) / SAVE_EVERY_SECONDS, 5),
        }


def measure(shards: Path, run: Path, *, background: bool) -> list[Event]:
    options = ["--data.shards", shards, "--precision", "fp32", "--global_batch_size", BATCH]
    options += ["--log_every_steps", 1, "--epochs", NUM_SAVES, "--evaluation.every_epochs", 0]
    options += ["--schedule.step_epochs", 3, "--schedule.conv1_step_epochs", 3]
    options += ["--schedule.conv1_freeze_epoch", "none", "--augment.color_noise_until_epoch", 3]
    options += ["--checkpoint.every_epochs", 1, "--checkpoint.keep", 1]
    options += ["--checkpoint.background", background]
    return train(run, "alexnet_2012", *options)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    arguments = command.parse_args()
    costs, num_bytes = {True: Cost(), False: Cost()}, 0
    with tempfile.TemporaryDirectory() as folder:
        num_train = BATCH * STEPS_PER_SAVE
        shards = shard_synthetic(Path(folder) / "shards", num_train=num_train, num_val=16, size=256)
        for number in range(arguments.rounds):
            for background, cost in costs.items():
                with tempfile.TemporaryDirectory(dir=folder) as run:
                    events = measure(shards, Path(run) / "run", background=background)
                cost.add(events)
                num_bytes = of_type(events, CheckpointEvent)[-1].num_bytes
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    report(
        {
            "claim": "steps wait for a copy in memory, not for the disk",
            "checkpoint_bytes": num_bytes,
            "background": costs[True].figures(),
            "waited_for": costs[False].figures(),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
