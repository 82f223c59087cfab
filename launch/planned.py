"""What a training takes, computed from its constants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.forecast import Costs, best_interval, daly_interval, expected_seconds, young_interval
from pipeline.config.model import ranks_per_replica
from pipeline.config.schema import Config
from pipeline.data.order.partition import every_steps, num_steps, steps_of_epoch
from pipeline.run.console import duration
from pipeline.run.ledger import WAITS
from pipeline.run.phase import Label


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """What a plan is computed from, measured or given; seconds."""

    ranks: int
    samples: int
    classes: int
    step: float
    phases: Mapping[Label, float]
    """Of a step; empty if they are not known."""
    evaluation: float
    best: float
    """The share of evaluations after which the run saves, though it is not due, as none was better
    before."""
    shard_bytes: int | None
    """Of the train split, if it is known."""
    is_on_gpus: bool
    costs: Costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a training takes; seconds, bytes and steps, as the names say."""

    ranks: int
    steps_per_epoch: int
    steps: int
    epochs: float
    step_seconds: float
    images_per_second: float
    step_parts: Mapping[Label, float]
    """Seconds of a step by phase; empty if nobody has measured them."""
    saves: int
    best_saves: float
    """Expected beside these, of evaluations that are the best so far."""
    evaluations: int
    failures: float
    """Expected."""
    wall_seconds: float
    """Expected, from the start of the job."""
    rank_hours: float
    """GPU-hours, if it is on GPUs."""
    is_on_gpus: bool
    goodput: float
    save_every_epochs: float
    best_save_every_epochs: float
    best_wall_seconds: float
    young_seconds: float
    """Of work between two saves; infinite without failures."""
    daly_seconds: float
    best_seconds: float
    checkpoint_bytes: int
    """Of one."""
    kept_bytes: int
    """Of those that are kept, the best one and one that is being written."""
    shard_bytes: int | None
    """Of the train split, where the shard set is on this host."""
    gradient_bytes: int
    """That a rank sends in a step: a ring's reduction over all replicas."""
    gradient_mbits: float
    """The same in Mbit/s."""
    data_mbits: float | None
    """Mbit/s for all nodes together, where shards that lie here would be read from elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Infinite numbers are null."""
        fields = dataclasses.asdict(self).items()
        return {name: None if value == math.inf else value for name, value in fields}

    def lines(self) -> list[str]:
        parts = ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in self.step_parts.items() if t)
        is_done = self.wall_seconds < math.inf
        spent = duration(self.wall_seconds) if is_done else "for ever"
        best = f", {self.best_saves:,.3g} more of best results" if self.best_saves else ""
        found = {
            "steps": f"{self.steps:,}, {self.steps_per_epoch:,} an epoch, {self.epochs:g} epochs",
            "step": f"{1e3 * self.step_seconds:.4g} ms, {self.images_per_second:,.0f} images/s"
            + (f": {parts}" if parts else ""),
            "time": f"{spent} expected, with {self.failures:.3g} failures, "
            f"{self.saves:,} saves{best} and {self.evaluations:,} evaluations; "
            f"{self.rank_hours:,.4g} {'GPU' if self.is_on_gpus else 'rank'}-hours",
            "goodput": f"{self.goodput:.1%} of the time in steps that stay done",
            "saves": f"--checkpoint.every_epochs {self.save_every_epochs:.4g}",
            "storage": f"{self.kept_bytes / 1e9:.3g} GB of checkpoints, {self.checkpoint_bytes:,} "
            f"bytes each" + (f"; shards {self.shard_bytes:,} bytes" if self.shard_bytes else ""),
            "network": f"{self.gradient_bytes:,} bytes of gradients a step and rank, "
            f"{self.gradient_mbits:,.0f} Mbit/s",
        }
        if self.young_seconds < math.inf:
            found["saves"] += (
                f"; best is {self.best_save_every_epochs:.4g}, every {self.best_seconds:,.4g} s "
                f"(Young {self.young_seconds:,.4g} s, Daly {self.daly_seconds:,.4g} s), "
                f"with {duration(self.best_wall_seconds)} in all"
            )
        if self.data_mbits is not None:
            found["network"] += f"; {self.data_mbits:,.0f} Mbit/s if shards are read from elsewhere"
        return [f"{name:12} {text}" for name, text in found.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pace:
    """How the work of a run is divided by its saves."""

    steps: int
    each: float
    """Seconds of a step, with its share of the evaluations."""
    evaluate: int
    """Steps between two evaluations."""
    best: float
    costs: Costs

    def best_saves(self, number: int) -> float:
        """Expected where a save is due after every `number` steps, beside those."""
        last = self.steps - 1
        return self.best * (last // self.evaluate - last // math.lcm(number, self.evaluate))

    def seconds(self, number: int) -> float:
        """Expected wall time; saves of two kinds count as evenly spread."""
        work, interval = self.steps * self.each, number * self.each
        if more := self.best_saves(number):
            interval = work / (math.ceil(self.steps / number) + more)
        return expected_seconds(work, interval, self.costs)

    def find_best(self, given: int) -> int:
        """The number of steps between due saves with which the run takes least."""
        interval = best_interval(self.steps * self.each, self.costs)
        found = min(self.steps, max(1, round(interval / self.each)))
        if not self.best:
            return found
        together = self.evaluate * max(1, found // self.evaluate)  # one save for two reasons
        return min(found, together, given, key=self.seconds)


def planned(config: Config, known: Constants) -> Plan:
    """Raises `ValueError` if there are fewer images than a step takes."""
    epoch = steps_of_epoch(known.samples, config.global_batch_size, drop_last=config.data.drop_last)
    if epoch == 0:
        raise ValueError(
            f"global_batch_size is {config.global_batch_size}, of {known.samples} images"
        )
    steps = num_steps(config.epochs, epoch)

    def every(epochs: float) -> int:
        return min(steps, every_steps(epochs, epoch)) if epochs else steps

    evaluate, save = every(config.evaluation.every_epochs), every(config.checkpoint.every_epochs)
    evaluations, costs = math.ceil(steps / evaluate), known.costs
    work = steps * known.step + evaluations * known.evaluation
    pace = _Pace(steps=steps, each=work / steps, evaluate=evaluate, best=known.best, costs=costs)
    best = pace.find_best(save)
    wall, best_wall = pace.seconds(save), pace.seconds(best)
    if best_wall == math.inf:
        raise ValueError(
            f"the job would fail every {1 / costs.rate:.3g} s on average, and no interval between "
            "saves gets it to its end: give fewer --nodes, or a longer --mtbf-hours"
        )
    waiting = sum(known.phases.get(label, 0.0) for label in WAITS)
    share = ranks_per_replica(config.model.columns)
    replicas = known.ranks // share
    size = 4 * config.model.num_parameters(known.classes) / share
    gradients = round(2 * (replicas - 1) / max(1, replicas) * size)
    shards, saved = known.shard_bytes, config.checkpoint_bytes(known.classes)
    return Plan(
        ranks=known.ranks,
        steps_per_epoch=epoch,
        steps=steps,
        epochs=config.epochs,
        step_seconds=known.step,
        images_per_second=config.global_batch_size / known.step,
        step_parts=known.phases,
        saves=math.ceil(steps / save),
        best_saves=pace.best_saves(save),
        evaluations=evaluations,
        failures=costs.rate * wall,
        wall_seconds=wall,
        is_on_gpus=known.is_on_gpus,
        rank_hours=known.ranks * wall / 3600,
        goodput=steps * (known.step - waiting) / wall,
        save_every_epochs=save / epoch,
        best_save_every_epochs=best / epoch,
        best_wall_seconds=best_wall,
        young_seconds=young_interval(costs),
        daly_seconds=daly_interval(costs),
        best_seconds=best * pace.each,
        checkpoint_bytes=saved,
        kept_bytes=saved * (config.checkpoint.keep + 2),
        shard_bytes=shards,
        gradient_bytes=gradients,
        gradient_mbits=8e-6 * gradients / known.step,
        data_mbits=None
        if known.shard_bytes is None
        else 8e-6 * known.shard_bytes / (epoch * known.step),
    )
