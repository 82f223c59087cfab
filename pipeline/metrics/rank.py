"""What one rank does: its steps, where their time goes, its reader and its GPU memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_prep.shard_set.families import ABSENT, Families
from pipeline.metrics import declared
from pipeline.run.ending import RunOutcome
from pipeline.run.phase import Label, Phase

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class RankMetrics:
    """The metrics with labels `rank` and `local_rank`. Recording costs microseconds.

    The histogram of step durations has neither label, so only rank 0 has it: synchronous training
    makes steps equally long on all ranks, and the same series from two ranks would clash.
    """

    def __init__(self, rank: int, local_rank: int, registry: CollectorRegistry | None) -> None:
        families = Families(registry, rank=str(rank), local_rank=str(local_rank))
        self._add_training(families)
        self._add_loading(families)
        self._step_duration = None
        if rank == 0:
            self._step_duration = families.histogram(declared.STEP_DURATION)

    def _add_training(self, families: Families) -> None:
        self._samples = families.counter(declared.TRAIN_SAMPLES)
        self._steps = families.counter(declared.TRAIN_STEPS)
        self._skipped = families.counter(declared.STEPS_SKIPPED)
        self._phase_seconds = families.counters(declared.STEP_SECONDS)
        self._outcomes = families.gauges(declared.RANK_OUTCOME)
        self.record_outcome("running")
        self._last_step = families.gauge(declared.LAST_STEP, ABSENT)
        self._phases = families.gauges(declared.RANK_PHASE)
        self._phase: Phase | None = None
        self._straggler = families.gauges(declared.STRAGGLER)
        self._loss_not_finite = families.counter(declared.LOSS_NOT_FINITE)
        self._differs = families.gauge(declared.REPLICA_DIFFERS)
        self._gpu_allocated = families.gauge(declared.GPU_MEMORY_ALLOCATED)
        self._gpu_reserved_peak = families.gauge(declared.GPU_MEMORY_PEAK)

    def _add_loading(self, families: Families) -> None:
        self._loader_samples = families.counters(declared.LOADER_SAMPLES)
        self._loader_bytes = families.counters(declared.LOADER_BYTES)
        self._loader_seconds = families.counters(declared.LOADER_SECONDS)
        self._loader_replaced = families.counter(declared.SAMPLE_FAILURES)
        self._loader_queue = families.gauge(declared.LOADER_QUEUE)

    def record_step(self, num_samples: float, phase_seconds: Mapping[Label, float]) -> None:
        """Count one step of this rank and where its time went.

        Of two ranks that share a replica each counts half of its samples.
        """
        self._samples.inc(num_samples)
        self._steps.inc()
        for label, seconds in phase_seconds.items():
            # Events of a GPU can be a hair apart the wrong way, and counters refuse to fall.
            self._phase_seconds[label].inc(max(0.0, seconds))
        if self._step_duration is not None:
            self._step_duration.observe(sum(phase_seconds.values()))
        self._last_step.set(time.time())

    def record_outcome(self, outcome: RunOutcome) -> None:
        """How the rank stands, or has left."""
        for state, gauge in self._outcomes.items():
            gauge.set(state == outcome)

    def enter(self, phase: Phase) -> None:
        """The rank is at `phase` from now on; what is published is where it is at that time."""
        self._phase = phase

    def show_phase(self) -> None:
        """Called before each publication, in the publisher's thread."""
        now = self._phase
        for name, gauge in self._phases.items():
            gauge.set(now is not None and name == now.name.lower())

    def record_straggler(self, phase: Label | None) -> None:
        """The others wait for this rank in `phase`; None: they do not."""
        for label, gauge in self._straggler.items():
            gauge.set(label == phase)

    def record_loss(self, loss: float) -> None:
        """This rank's own loss of a log interval."""
        self._loss_not_finite.inc(not math.isfinite(loss))

    def record_difference(self) -> None:
        """The weights of this rank are not those of the others."""
        self._differs.set(1)

    def record_skip(self) -> None:
        """One of the steps was not applied."""
        self._skipped.inc()

    def record_loaded(
        self,
        source: str,
        *,
        num_samples: int,
        num_bytes: int,
        read_seconds: float,
        decode_seconds: float,
        num_replaced: int,
    ) -> None:
        """Count samples that a reader delivered; `source` is from `READERS`."""
        self._loader_replaced.inc(num_replaced)
        self._loader_samples[source].inc(num_samples)
        self._loader_bytes[source].inc(num_bytes)
        self._loader_seconds["read"].inc(max(0.0, read_seconds))
        self._loader_seconds["decode"].inc(max(0.0, decode_seconds))

    def record_queue(self, num_batches: int) -> None:
        """Note how many batches are ready ahead of need."""
        self._loader_queue.set(num_batches)

    def record_gpu_memory(self, allocated_bytes: int, reserved_peak_bytes: int) -> None:
        """Note the GPU memory held by tensors now, and by the allocator at most."""
        self._gpu_allocated.set(allocated_bytes)
        self._gpu_reserved_peak.set(reserved_peak_bytes)
