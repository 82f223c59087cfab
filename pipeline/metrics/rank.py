"""What one rank does: its steps, where their time goes, its reader and its GPU memory."""

from __future__ import annotations

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from pipeline.config.data import READERS
from pipeline.metrics.families import ABSENT, Families
from pipeline.run.ending import RUN_OUTCOMES, RunOutcome
from pipeline.run.phase import PHASE_LABELS, Label

LOADER_PHASES = ("read", "decode")

_STEP_BUCKETS = tuple(round(0.002 * 2 ** (quarter / 4), 5) for quarter in range(57))
"""Four for each doubling from 2 ms to 33 s, so that a quantile is right to 19 % at worst.

Half as many would double that error. Twice as many would be more series than all others of the job
together, and most of them empty.
"""


class RankMetrics:
    """The metrics with labels `rank` and `local_rank`. Recording costs microseconds.

    The histogram of step durations has neither label, so only rank 0 has it: synchronous training
    makes steps equally long on all ranks, and the same series from two ranks would clash.
    """

    def __init__(self, rank: int, local_rank: int, registry: CollectorRegistry) -> None:
        families = Families(registry, rank=str(rank), local_rank=str(local_rank))
        self._add_training(families)
        self._add_loading(families)
        self._step_duration = None
        if rank == 0:
            self._step_duration = families.histogram(
                "step_duration_seconds", "Wall time of a step, seen by rank 0", _STEP_BUCKETS
            )

    def _add_training(self, families: Families) -> None:
        self._samples = families.counter("train_samples_total", "Samples of all steps")
        self._steps = families.counter("train_steps_total", "Steps, applied or skipped")
        self._skipped = families.counter(
            "train_steps_skipped_total", "Steps not applied: their gradients were not finite"
        )
        self._phase_seconds = families.counters(
            "step_seconds_total", "Wall time of the steps by phase", "phase", PHASE_LABELS
        )
        self._outcomes = families.gauges(
            "rank_outcome", "1 for how the rank stands, else 0", "outcome", RUN_OUTCOMES
        )
        self.record_outcome("running")
        self._last_step = families.gauge(
            "last_step_timestamp_seconds", "When the last step ended", ABSENT
        )
        self._gpu_allocated = families.gauge(
            "gpu_memory_allocated_bytes", "GPU memory that tensors hold"
        )
        self._gpu_reserved_peak = families.gauge(
            "gpu_memory_reserved_peak_bytes", "Most GPU memory the allocator has held"
        )

    def _add_loading(self, families: Families) -> None:
        self._loader_samples = families.counters(
            "loader_samples_total", "Samples read and decoded", "source", READERS
        )
        self._loader_bytes = families.counters(
            "loader_bytes_read_total", "Encoded bytes read", "source", READERS
        )
        self._loader_seconds = families.counters(
            "loader_seconds_total", "Reader time, summed over its threads", "phase", LOADER_PHASES
        )
        self._loader_replaced = families.counter(
            "loader_sample_failures_total", "Damaged samples that another one stood in for"
        )
        self._loader_queue = families.gauge("loader_queue_batches", "Batches ready ahead of need")

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
