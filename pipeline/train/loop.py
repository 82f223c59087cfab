"""The training loop: read, compute, update, then what is due."""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from typing import Any

from pipeline.data.open import Batches
from pipeline.optim.precision import MAX_SKIPPED_IN_A_ROW, Outcome
from pipeline.optim.schedule import Position, learning_rates
from pipeline.ranks.failure import RankFailure, sentence_of
from pipeline.ranks.stop import StopRequests
from pipeline.run import checkpoint
from pipeline.run.events import CheckpointEvent, CheckpointReason
from pipeline.run.phase import Phase
from pipeline.train.components import Components
from pipeline.train.due import is_due
from pipeline.train.evaluation import evaluate, save_predictions
from pipeline.train.log_interval import StepLog


class TrainingLoop:
    """Trains from where `components.progress` is, up to `components.end_step`."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._log = StepLog(components)
        self._saved_step = components.progress.step
        self._learning_rate = 0.0
        self._outcome: Outcome | None = None
        components.replica.when_gradients_are_ready = partial(components.enter, Phase.AVERAGING)

    def run(self, stops: StopRequests) -> None:
        """Train until `components.end_step` steps are done or the ranks agree to stop; then save.

        Raises `ValueError` if training diverges, `RankFailure` if the disk does not take the state,
        `LostRank` if another rank is gone, and what the reader raises.
        """
        components, progress = self._components, self._components.progress
        source = None
        with (
            components.open_batches(progress.step, components.end_step) as batches,
            self._log.recording_own_damages(batches),
        ):
            while progress.step < components.end_step and source is None:
                self._step(batches)
                components.enter(Phase.AGREEING)
                source = stops.agreed(progress.step)
        if self._log.interval.is_begun:
            self._end_interval()
        if source is not None:
            components.journal.stop_requested(progress.step, source)
        if self._saved_step != progress.step:
            reason: CheckpointReason = "periodic" if source is None else "preempt"
            error = self._save(reason)
            if error is not None:
                raise RankFailure(  # all ranks raise it: none of them is to be named
                    f"the checkpoint of step {progress.step} could not be saved: {error}; once "
                    "that is mended, run the same command again",
                    is_reported_here=components.world.is_main,
                )
        stops.close()

    def _step(self, batches: Batches) -> None:
        """Read, compute and update; then do what is due after this step."""
        components, config, plan = self._components, self._components.config, self._components.plan
        device, log = components.world.device, self._log
        step, epoch = components.progress.step, plan.epoch_of(components.progress.step)
        evaluates = self._is_due(config.evaluation.every_epochs, step + 1)
        saves = self._is_due(config.checkpoint.every_epochs, step + 1)
        # A log interval also ends before what takes the time of many steps.
        logs = (step + 1) % config.log_every_steps == 0 or evaluates or saves

        num_samples = 0
        for micro_batch in range(plan.accumulation_steps):
            components.enter(Phase.READING)
            batch = next(batches)
            components.enter(Phase.COPYING)
            images, labels = batch.to(device)
            keys = components.augmenter.dropout_keys(batch.samples, epoch, device)
            components.enter(Phase.COMPUTING)
            loss, logits = components.replica.add_gradients(
                components.augmenter(images, batch.samples, epoch, batch.crop_windows),
                keys,
                labels,
                step_samples=plan.samples_in_step(step),
                is_last=micro_batch + 1 == plan.accumulation_steps,
            )
            components.enter(Phase.COUNTING)
            log.interval.note_predictions(loss, logits, labels)
            num_samples += batch.num_valid
            del images, labels, keys, loss, logits  # the next batch takes their memory

        components.enter(Phase.UPDATING)
        self._settle()
        self._set_rates()
        norm, self._outcome = components.replica.update(wants_norm=logs)
        components.enter(Phase.COUNTING)
        components.progress.step += 1
        log.count_step(batches, num_samples, norm)

        if logs:
            self._end_interval()
        best_top1 = self._evaluate() if evaluates else None
        if saves or best_top1 is not None:
            error = self._save("periodic" if saves else "best", best_top1)
            if error is not None:
                components.journal.console.line(f"warning: no checkpoint saved: {error}")

    def _end_interval(self) -> None:
        self._components.enter(Phase.LOGGING)
        self._settle()
        self._log.end_interval(self._learning_rate)

    def _is_due(self, every_epochs: float, step: int) -> bool:
        components = self._components
        return is_due(step, every_epochs, components.plan.steps_per_epoch, components.target_steps)

    def _evaluate(self) -> float | None:
        """Evaluate `val`; returns its top-1 if that is above the best checkpoint's."""
        components, progress = self._components, self._components.progress
        result = evaluate(
            components.replica.model,
            components.val,
            components.world,
            components.mesh,
            step=progress.step,
            epoch=components.epoch,
            enter=components.enter,
        )
        if components.world.is_main:
            try:
                save_predictions(components.run, result)
            except OSError as error:
                sentence = f"warning: predictions not saved: {sentence_of(error)}"
                components.journal.console.line(sentence)
        event = result.event
        components.journal.evaluated(event)
        is_best = progress.evaluated(loss=event.loss, top1=event.top1, top5=event.top5)
        return event.top1 if is_best else None

    def _save(self, reason: CheckpointReason, best_top1: float | None = None) -> str | None:
        """Save the run as it is, as the best checkpoint if `best_top1` is given.

        Returns what was wrong with the disk, on all ranks; None: it is saved. Raises `ValueError`
        if a weight is not a number or the replicas differ.
        """
        components, progress = self._components, self._components.progress
        world, replica = components.world, components.replica
        components.enter(Phase.AGREEING)
        mine = int(self._log.replicas.fingerprint()), replica.is_finite()
        fingerprints, are_finite = zip(*world.all_gather_object(mine), strict=True)
        self._log.replicas.check(fingerprints)
        if not all(are_finite):
            raise ValueError(
                f"a weight is not a number at step {progress.step}: training has diverged, "
                "nothing is saved; lower optim.learning_rate"
            )
        marked = progress.marked
        if best_top1 is not None:
            progress.marked = progress.step, best_top1
        state = replica.state_dict() if components.mesh.replica == 0 else {}
        components.enter(Phase.SAVING)
        error = None
        if world.is_main:
            error = self._write(reason, state)
            components.enter(Phase.AGREEING)  # only the others may wait as long as saving takes
        error = world.broadcast_object(error)
        if error is None:
            self._saved_step = progress.step
        else:
            progress.marked = marked
            components.journal.checkpoint_failed(reason)
        return error

    def _write(self, reason: CheckpointReason, state: dict[str, Any]) -> str | None:
        """Write the checkpoint and record it; returns what went wrong."""
        components, progress = self._components, self._components.progress
        directory, journal = components.run.checkpoints, components.journal
        begin = time.perf_counter()
        state["progress"] = dataclasses.asdict(progress)
        state["settings"] = json.dumps(components.settings.to_json())
        try:
            path, num_bytes = checkpoint.save(directory, progress.step, state)
        except OSError as error:
            return sentence_of(error)
        event = CheckpointEvent(
            step=progress.step,
            epoch=components.epoch,
            path=str(path),
            num_bytes=num_bytes,
            seconds=time.perf_counter() - begin,
            reason=reason,
        )
        journal.checkpointed(event)
        try:  # the next save makes up for what fails
            if progress.marked is not None:
                checkpoint.mark_best(directory, progress.marked[0])
            checkpoint.prune(directory, components.config.checkpoint.keep)
        except OSError as error:
            journal.console.line(
                "warning: the best checkpoint is not marked, or old ones are not deleted: "
                f"{sentence_of(error)}"
            )
        return None

    def _settle(self) -> None:
        """Find out whether the last step was skipped, which waits for the device in fp16 only.

        By then it has the next passes to work on. Raises `ValueError` if no loss scale helps.
        """
        components, outcome = self._components, self._outcome
        if outcome is None:
            return
        self._outcome = None
        skipped = outcome.was_skipped()
        components.progress.settle_step(skipped=skipped)
        if skipped:
            components.metrics.record_skip()
        if components.progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"the gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{components.progress.step}, were not finite: lower optim.learning_rate, or use "
                "--precision bf16"
            )

    def _set_rates(self) -> None:
        components = self._components
        position = Position(
            updates=components.progress.updates,
            steps_per_epoch=components.plan.steps_per_epoch,
            target_steps=components.target_steps,
            losses=components.progress.losses,
        )
        rates = learning_rates(components.config.optim, components.config.schedule, position)
        components.replica.set_rates(rates)
        self._learning_rate = rates.weights
