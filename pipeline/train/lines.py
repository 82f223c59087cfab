"""What the console shows of a run: its arithmetic, log intervals and evaluations."""

from __future__ import annotations

from pipeline.config.model import ranks_per_replica
from pipeline.config.schema import Config
from pipeline.data.open import BatchPlan
from pipeline.run.console import counted
from pipeline.run.events import TrainEvent
from pipeline.train.evaluation import Evaluation


def resolved_table(
    config: Config,
    plan: BatchPlan,
    *,
    num_val_samples: int,
    target_steps: int,
    num_ranks: int,
    device: str,
) -> dict[str, str]:
    """The arithmetic of a run, for its first lines."""
    rounds = "" if plan.accumulation_steps == 1 else f" × {plan.accumulation_steps} accumulated"
    if plan.dropped_samples:
        rest = f"{plan.dropped_samples:,} left out in each, others every time"
    elif plan.num_samples % plan.global_batch_size:
        rest = f"none left out, the last batch has {plan.num_samples % plan.global_batch_size:,}"
    else:
        rest = "none left out"
    is_split = ranks_per_replica(config.model.columns) > 1
    layout = ", one column each" if is_split else ""
    holders = counted(plan.num_replicas, "replica" if is_split else "rank")
    schedule = config.schedule
    warmup = f" after {schedule.warmup_ratio:.0%} warm-up" if schedule.warmup_ratio else ""
    return {
        "ranks": f"{num_ranks} on {device}, {config.resolved_precision}{layout}",
        "global batch": f"{plan.global_batch_size:,} = {holders} × "
        f"{plan.local_batch_size:,} local{rounds}",
        "epochs": f"{config.epochs:g} of {plan.steps_per_epoch:,} steps, {target_steps:,} in all",
        "samples": f"{plan.num_samples:,} train ({rest}), {num_val_samples:,} val",
        "optimizer": f"{config.optim.name}, learning rate {config.optim.learning_rate:g} at its "
        f"peak, {schedule.name}{warmup}",
    }


def train_line(event: TrainEvent, *, target_steps: int, eta_seconds: float) -> str:
    """One log interval."""
    width = len(f"{target_steps:,}")
    return (
        f"step {event.step:>{width},}/{target_steps:,}  epoch {event.epoch:6.2f}  "
        f"loss {event.loss:.4f}  top-1 {event.top1:6.1%}  "
        f"{event.images_per_second:,.0f} images/s  "
        f"data wait {event.data_wait_ratio:.1%}  ETA {clock_time(eta_seconds)}"
    )


def evaluation_line(result: Evaluation) -> str:
    top5 = "" if result.top5 is None else f"top-5 {result.top5:.2%}  "
    return (
        f"{result.spec.split}: top-1 {result.top1:.2%} ({result.correct1:,} of "
        f"{result.seen:,})  {top5}loss {result.loss:.4f}  in {result.seconds:.1f} s"
    )


def evaluation_table(result: Evaluation) -> dict[str, str]:
    """What `pipeline.evaluate` found, for its standard output."""
    spec = result.spec
    table = {
        "evaluated": f"{spec.split} of {spec.shard_set}, {result.seen:,} images, "
        f"{'one view' if spec.views == 1 else f'{spec.views} views'} of each",
        "top-1": f"{result.top1:.2%} ({result.correct1:,} of {result.seen:,})",
        "loss": f"{result.loss:.4f}",
        "time": f"{result.seconds:.1f} s",
    }
    if result.top5 is not None:
        table["top-5"] = f"{result.top5:.2%} ({result.correct5:,} of {result.seen:,})"
    if not spec.own_shards:
        table["note"] = "this is not the shard set that the run was trained on"
    order = ("evaluated", "top-1", "top-5", "loss", "time", "note")
    return {name: table[name] for name in order if name in table}


def clock_time(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
