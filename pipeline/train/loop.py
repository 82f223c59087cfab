"""The training loop: read, compute, update, then what is due."""

from __future__ import annotations

from functools import partial

from pipeline.data.open import Batches
from pipeline.optim.precision import MAX_SKIPPED_IN_A_ROW, Outcome
from pipeline.optim.schedule import Position, learning_rates
from pipeline.ranks.failure import RankFailure, sentence_of
from pipeline.ranks.stop import StopRequests
from pipeline.run.events import CheckpointReason
from pipeline.run.phase import Phase
from pipeline.train.components import Components
from pipeline.train.due import is_due
from pipeline.train.evaluation import evaluate, save_predictions
from pipeline.train.log_interval import StepLog
from pipeline.train.saving import Saves
from pipeline.train.survival import Stage


class TrainingLoop:
    """Trains from where `components.progress` is, up to `components.end_step`."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._log = StepLog(components)
        self.saves = Saves(components, self._log.replicas)
        self._learning_rate = 0.0
        self._outcome: Outcome | None = None
        self._has_stepped = False
        components.replica.when_gradients_are_ready = partial(components.enter, Phase.AVERAGING)

    def run(self, stops: StopRequests) -> None:
        """Train until `components.end_step` steps are done or the ranks agree to stop; then save.

        Raises `ValueError` if training diverges, `RankFailure` if the disk does not take the state,
        `LostRank` if another rank is gone, and what the reader raises.
        """
        components, progress = self._components, self._components.progress
        source = None
        self._go_on_after_step()
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
            if components.world.is_main and components.world.generations is not None:
                components.world.generations.note_stop(components.world.generation, source)
        self.saves.settle()
        if self.saves.saved_step != progress.step:
            reason: CheckpointReason = "periodic" if source is None else "preempt"
            error = self.saves.save(reason, in_background=False)
            if error is not None:
                raise RankFailure(  # all ranks raise it: none of them is to be named
                    f"the checkpoint of step {progress.step} could not be saved: {error}; once "
                    "that is mended, run the same command again",
                    is_reported_here=components.world.is_main,
                )
        self.saves.close()
        stops.close()
        components.memory.forget()

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
        components.memory.forget()
        self._set_rates()
        norm, self._outcome = components.replica.update(wants_norm=logs)
        components.enter(Phase.COUNTING)
        components.progress.step += 1
        self._hold(Stage.STEPPED)
        self._tell_of_step()
        log.count_step(batches, num_samples, norm)
        self.saves.report()

        if logs:
            self._end_interval()
        self._do_due(evaluates=evaluates, saves=saves)

    def _tell_of_step(self) -> None:
        """Let supervisors know that these ranks do steps."""
        world, self._has_stepped, before = self._components.world, True, self._has_stepped
        if world.is_main and world.generations is not None and not before:
            world.generations.note_step(world.generation)

    def _hold(self, stage: Stage, best_top1: float | None = None) -> None:
        components = self._components
        if components.world.generations is not None:
            self._settle()
        components.memory.hold(
            stage, components.progress, components.replica, components.world, best_top1
        )

    def _go_on_after_step(self) -> None:
        """Do what was due after the last step when a rank was lost."""
        components, config = self._components, self._components.config
        held, step = components.memory.held, components.progress.step
        if held is None:
            return
        stage = held.moment.stage
        evaluates = stage < Stage.EVALUATED and self._is_due(config.evaluation.every_epochs, step)
        saves = stage < Stage.DONE and self._is_due(config.checkpoint.every_epochs, step)
        self._do_due(evaluates=evaluates, saves=saves, best_top1=held.best_top1)

    def _do_due(self, *, evaluates: bool, saves: bool, best_top1: float | None = None) -> None:
        """Evaluate and save after a step; `best_top1` is of an evaluation that was made before."""
        components = self._components
        if evaluates:
            best_top1 = self._evaluate()
            self._hold(Stage.EVALUATED, best_top1)
        if saves or best_top1 is not None:
            reason: CheckpointReason = "periodic" if saves else "best"
            has_steps_left = components.progress.step < components.end_step
            error = self.saves.save(reason, best_top1, in_background=has_steps_left)
            if error is not None:
                components.journal.no_checkpoint(error)
            self._hold(Stage.DONE)

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
        self.saves.settle()  # whether the last best one is there decides on the next one
        is_best = progress.evaluated(loss=event.loss, top1=event.top1, top5=event.top5)
        return event.top1 if is_best else None

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
