"""What the whole job does. Rank 0 alone has these metrics; their values are already reduced."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data_prep.shard_set.families import ABSENT, Families
from pipeline.metrics import declared
from pipeline.run.event_log import of_type, own_evaluations
from pipeline.run.events import (
    CheckpointEvent,
    CheckpointReason,
    EvalEvent,
    Event,
    RunEvent,
    SlowPart,
    TrainEvent,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class JobMetrics:
    """The metrics without a `rank`. A value that is not finite leaves the last finite one."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._start = time.time()
        self._families = families = Families(registry)
        self._add_run(families)
        self._add_training(families)
        self._add_evaluation(Families(registry, split="val"))
        self._add_checkpoints(families)

    def _add_run(self, families: Families) -> None:
        self._run_start = families.gauge(declared.RUN_START)
        self._run_end = families.gauge(declared.RUN_END)
        self._run_duration = families.gauge(declared.RUN_DURATION)
        self._resumes = families.counter(declared.RESUMES)
        self._preempt_signals = families.counter(declared.PREEMPT_SIGNALS)
        self._steps_per_epoch = families.gauge(declared.STEPS_PER_EPOCH)
        self._target_epochs = families.gauge(declared.TARGET_EPOCHS)
        self._global_batch = families.gauge(declared.GLOBAL_BATCH)
        self._world_size = families.gauge(declared.WORLD_SIZE)

    def _add_training(self, families: Families) -> None:
        self._step = families.gauge(declared.GLOBAL_STEP)
        self._epoch = families.gauge(declared.EPOCH)
        self._loss = families.gauge(declared.TRAIN_LOSS, ABSENT)
        self._accuracy = families.gauge(declared.TRAIN_ACCURACY, ABSENT)
        self._learning_rate = families.gauge(declared.LEARNING_RATE, ABSENT)
        self._grad_norm = families.gauge(declared.GRAD_NORM, ABSENT)
        self._grad_scale = families.gauge(declared.GRAD_SCALE, ABSENT)
        self._not_learning = families.gauge(declared.NOT_LEARNING)
        self._delay_wanders = families.gauge(declared.DELAY_WANDERS)
        self._delay_unattributed = families.gauge(declared.DELAY_UNATTRIBUTED)
        self._fingerprints = families.counter(declared.FINGERPRINTS)

    def _add_evaluation(self, families: Families) -> None:
        self._eval_loss = families.gauge(declared.EVAL_LOSS, ABSENT)
        self._eval_accuracy = families.gauges(declared.EVAL_ACCURACY, ABSENT)
        self._best_accuracy = families.gauges(declared.BEST_ACCURACY, ABSENT)
        self._eval_samples = families.gauge(declared.EVAL_SAMPLES)
        self._eval_expected = families.gauge(declared.EVAL_EXPECTED)
        self._eval_success = families.gauge(declared.EVAL_SUCCESS)

    def _add_checkpoints(self, families: Families) -> None:
        self._checkpoints = families.counters(declared.CHECKPOINTS)
        self._checkpoint_failures = families.counters(declared.CHECKPOINT_FAILURES)
        self._checkpoint_duration = families.histogram(declared.CHECKPOINT_DURATION)
        self._checkpoint_wait = families.counter(declared.CHECKPOINT_WAIT)
        self._checkpoint_success = families.gauge(declared.CHECKPOINT_SUCCESS)
        self._checkpoint_step = families.gauge(declared.CHECKPOINT_STEP)
        self._checkpoint_bytes = families.gauge(declared.CHECKPOINT_BYTES)

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
        self._families.info(declared.BUILD_INFO, build)
        self._families.info(declared.RUN_INFO, run)

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

    def record_delay(self, slow: SlowPart | None) -> None:
        """What holds up the ranks, if anything does; one that is slow says so itself."""
        self._delay_wanders.set(slow == "loader")
        self._delay_unattributed.set(slow == "unattributed")

    def compared_replicas(self) -> None:
        """The weights of the replicas were compared."""
        self._fingerprints.inc()

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

    def checkpointed(self, event: CheckpointEvent, waited_seconds: float) -> None:
        """A checkpoint was written; the steps waited for it."""
        self._checkpoint_wait.inc(waited_seconds)
        self._checkpoints[event.reason].inc()
        self._checkpoint_duration.observe(event.seconds)
        self._checkpoint_success.set(event.time)
        self._checkpoint_step.set(event.step)
        self._checkpoint_bytes.set(event.num_bytes)

    def checkpoint_failed(self, reason: CheckpointReason, waited_seconds: float) -> None:
        """A checkpoint could not be written; the steps waited for that."""
        self._checkpoint_wait.inc(waited_seconds)
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
