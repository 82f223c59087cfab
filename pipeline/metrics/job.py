"""What the whole job does. Rank 0 alone has these metrics; their values are already reduced."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry

from pipeline.metrics.families import ABSENT, Families
from pipeline.run.event_log import of_type, own_evaluations
from pipeline.run.events import (
    CheckpointEvent,
    CheckpointReason,
    EvalEvent,
    Event,
    RunEvent,
    TrainEvent,
)

CHECKPOINT_KINDS = get_args(CheckpointReason)
"""Why a checkpoint is written."""

GLOBAL_STEP = "alexnet_global_step"

_CHECKPOINT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class JobMetrics:
    """The metrics without a `rank`. A value that is not finite leaves the last finite one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._start = time.time()
        self._families = families = Families(registry)
        self._add_run(families)
        self._add_training(families)
        self._add_evaluation(Families(registry, split="val"))
        self._add_checkpoints(families)

    def _add_run(self, families: Families) -> None:
        self._run_start = families.gauge("run_start_timestamp_seconds", "When this attempt began")
        self._run_end = families.gauge("run_end_timestamp_seconds", "When it ended; 0 before")
        self._run_duration = families.gauge("run_duration_seconds", "How long it took; 0 before")
        self._resumes = families.counter("resumes_total", "Times the run was resumed")
        self._preempt_signals = families.counter("preempt_signals_total", "Stop requests heeded")
        self._steps_per_epoch = families.gauge("steps_per_epoch", "Steps of one epoch")
        self._target_epochs = families.gauge("target_epochs", "Epochs of the whole run")
        self._global_batch = families.gauge("global_batch_samples", "Samples of one step")
        self._world_size = families.gauge("world_size_ranks", "Ranks of the job")

    def _add_training(self, families: Families) -> None:
        self._step = families.gauge("global_step", "Steps done in the life of the run")
        self._epoch = families.gauge("epoch", "Epochs done in the life of the run, a fraction too")
        self._loss = families.gauge("train_loss", "Mean loss of the log interval", ABSENT)
        self._accuracy = families.gauge(
            "train_accuracy_ratio", "Top-1 accuracy of the log interval", ABSENT
        )
        self._learning_rate = families.gauge("learning_rate", "Learning rate", ABSENT)
        self._grad_norm = families.gauge("train_grad_norm", "Norm of the gradients", ABSENT)
        self._grad_scale = families.gauge("grad_scale", "Loss scale of fp16 training", ABSENT)
        self._not_learning = families.gauge(
            "not_learning", "1 while the loss is that of guessing long after the start, else 0"
        )

    def _add_evaluation(self, families: Families) -> None:
        self._eval_loss = families.gauge("eval_loss", "Mean loss of the last evaluation", ABSENT)
        top_k = ("k", ("1", "5"), ABSENT)
        self._eval_accuracy = families.gauges(
            "eval_accuracy_ratio", "Top-k accuracy of the last evaluation", *top_k
        )
        self._best_accuracy = families.gauges(
            "best_eval_accuracy_ratio", "Highest top-k accuracy of an evaluation so far", *top_k
        )
        self._eval_samples = families.gauge(
            "eval_samples", "Samples that the last evaluation counted"
        )
        self._eval_expected = families.gauge("eval_expected_samples", "Samples of the split")
        self._eval_success = families.gauge(
            "eval_last_success_timestamp_seconds", "When one last ended; 0 before"
        )

    def _add_checkpoints(self, families: Families) -> None:
        self._checkpoints = families.counters(
            "checkpoints_total", "Checkpoints tried", "kind", CHECKPOINT_KINDS
        )
        self._checkpoint_failures = families.counters(
            "checkpoint_failures_total", "Checkpoints not written", "kind", CHECKPOINT_KINDS
        )
        self._checkpoint_duration = families.histogram(
            "checkpoint_duration_seconds", "Time to write a checkpoint", _CHECKPOINT_BUCKETS
        )
        self._checkpoint_success = families.gauge(
            "checkpoint_last_success_timestamp_seconds", "When one last was written; 0 before"
        )
        self._checkpoint_step = families.gauge("checkpoint_last_step", "Step of the last one")
        self._checkpoint_bytes = families.gauge("checkpoint_bytes", "Size of the last one")

    def started(
        self, event: RunEvent, epochs: float, build: Mapping[str, str], run: Mapping[str, str]
    ) -> None:
        """A process group starts; `build` and `run` are the labels of the metrics `…_info`."""
        self._start = time.time()
        self._run_start.set(self._start)
        self.count_step(event.step, event.epoch)
        self._steps_per_epoch.set(event.steps_per_epoch)
        self._target_epochs.set(epochs)
        self._global_batch.set(event.global_batch_size)
        self._world_size.set(event.world_size)
        self._families.info("build_info", "Versions of the software", build)
        self._families.info("run_info", "What is trained, on what", run)

    def resumed(
        self,
        times: int,
        *,
        step: int,
        history: Sequence[Event],
        best_top1: float | None = None,
        best_top5: float | None = None,
    ) -> None:
        """The run goes on from its checkpoint of `step`; gauges go on with their last values.

        `times` counts this and all earlier resumptions of the run: the counter starts at 0 in each
        process, and two attempts that both say 1 would look like one. `history` has the run's
        events up to `step`, oldest first. `best_top1` and `best_top5` are the best of `val` so far.
        """
        self._resumes.inc(times)
        self._checkpoint_step.set(step)
        for trained in of_type(history, TrainEvent)[-1:]:
            self.trained(trained)
        for saved in of_type(history, CheckpointEvent)[-1:]:
            self._checkpoint_success.set(saved.time)
            self._checkpoint_bytes.set(saved.num_bytes)
        for newest in own_evaluations(history)[-1:]:
            self._show_evaluation(newest)
        self._best_accuracy["1"].set(best_top1)
        self._best_accuracy["5"].set(best_top5)

    def count_step(self, step: int, epoch: float) -> None:
        """`step` and `epoch` are those of the run's whole life."""
        self._step.set(step)
        self._epoch.set(epoch)

    def trained(self, event: TrainEvent, grad_scale: float | None = None) -> None:
        """A log interval ended."""
        self._loss.set(event.loss)
        self._accuracy.set(event.top1)
        self._learning_rate.set(event.learning_rate)
        self._grad_norm.set(event.grad_norm)
        self._grad_scale.set(grad_scale)

    def record_learning(self, *, is_stuck: bool) -> None:
        """Whether the network only guesses, though it has seen many samples."""
        self._not_learning.set(is_stuck)

    def evaluated(self, event: EvalEvent) -> None:
        """An evaluation of `val` ended; no `top5` is shown if None."""
        self._show_evaluation(event)
        self._best_accuracy["1"].raise_to(event.top1)
        self._best_accuracy["5"].raise_to(event.top5)

    def _show_evaluation(self, newest: EvalEvent) -> None:
        self._eval_loss.set(newest.loss)
        self._eval_samples.set(newest.seen)
        self._eval_expected.set(newest.expected)
        self._eval_accuracy["1"].set(newest.top1)
        self._eval_accuracy["5"].set(newest.top5)
        self._eval_success.set(newest.time)

    def checkpointed(self, event: CheckpointEvent) -> None:
        """A checkpoint was written."""
        self._checkpoints[event.reason].inc()
        self._checkpoint_duration.observe(event.seconds)
        self._checkpoint_success.set(event.time)
        self._checkpoint_step.set(event.step)
        self._checkpoint_bytes.set(event.num_bytes)

    def checkpoint_failed(self, reason: CheckpointReason) -> None:
        """A checkpoint could not be written."""
        self._checkpoints[reason].inc()
        self._checkpoint_failures[reason].inc()

    def stop_requested(self) -> None:
        """The ranks agreed to stop early."""
        self._preempt_signals.inc()

    def ended(self) -> None:
        """The job leaves; `pipeline.metrics.outcomes` says how."""
        now = time.time()
        self._run_end.set(now)
        self._run_duration.set(now - self._start)
