"""Everything that training works with."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.shard_set.manifest import Manifest
from pipeline.config.schema import Config
from pipeline.data.open import Augmenter, BatchPlan, EvaluatedSplit, OpenBatches
from pipeline.metrics.rank import RankMetrics
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.phase import Phase
from pipeline.run.settings import Settings
from pipeline.train.clock import StartClock, StepClock
from pipeline.train.journal import Journal
from pipeline.train.progress import Progress
from pipeline.train.start import Start
from pipeline.train.survival import Memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """Made by `pipeline.train.prepare`, for one command on one rank."""

    start: Start
    start_clock: StartClock
    settings: Settings
    manifest: Manifest
    plan: BatchPlan
    target_steps: int
    """Of the whole run."""
    end_step: int
    """Where this command ends."""
    run: RunDirectory
    world: World
    mesh: Mesh
    replica: Replica
    augmenter: Augmenter
    open_batches: OpenBatches
    val: EvaluatedSplit
    progress: Progress
    journal: Journal
    metrics: RankMetrics
    memory: Memory
    clock: StepClock
    watchdog: Watchdog

    @property
    def config(self) -> Config:
        return self.settings.config

    @property
    def epoch(self) -> float:
        """Epochs done in the life of the run."""
        return self.progress.step / self.plan.steps_per_epoch

    def enter(self, phase: Phase) -> None:
        """This rank is at `phase` from now on: so say its watchdog, clock and metrics."""
        self.clock.enter(phase)
        self.watchdog.enter(phase, self.progress.step)
        self.metrics.enter(phase)
