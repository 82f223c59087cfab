"""A month of 1,024 ranks on 128 hosts, with a fault in three hours.

    python -m tests.simulation --month SEED

Ranks that are alike are one process: faults hit rank 0 and one rank of each of two other hosts, and
by symmetry these stand for all. Where nothing happens the steps up to the next event are one.
"""

from __future__ import annotations

import random

from pipeline.config.schema import CheckpointConfig, Config
from pipeline.config.timeouts import LEAD_SECONDS, shutdown_seconds
from pipeline.data.order.partition import BatchPlan
from pipeline.run.directory import RunDirectory
from tests.simulation.faults import KINDS, Fault
from tests.simulation.job import JobSetup
from tests.simulation.network import Layout
from tests.simulation.ranks import RunSetup
from tests.simulation.simulate import Setting

NUM_RANKS = 1024
DAY = 86400.0
_BETWEEN_FAULTS = 3 * 3600.0
_STEP_SECONDS = 10.0
_SYNC_SECONDS = 0.5
_PRODUCTIVE = 0.9
"""Share of the month that the steps of the run take, at least."""

LAYOUT = Layout(
    (
        {0: range(1), 1: range(1, 8)},
        {8: range(8, 9), 9: range(9, 16)},
        {16: range(16, 17), 17: range(17, 24)},
        {24: range(24, NUM_RANKS)},  # 125 hosts
    )
)
_HIT = (0, 8, 16)
"""Ranks that faults hit."""


def month(seed: int, run: RunDirectory, days: float = 30.0) -> Setting:
    """Faults come at an exponential rate, all kinds alike."""
    end = days * DAY
    chance, faults, time = random.Random(seed), [], 0.0
    while (time := time + chance.expovariate(1 / _BETWEEN_FAULTS)) < end:
        kind, rank = chance.choice(KINDS), chance.choice(_HIT)
        faults.append(Fault(time=time, kind=kind, rank=rank, amount=chance.random()))
    plan = BatchPlan(
        num_samples=1_281_167,
        global_batch_size=4 * NUM_RANKS,
        num_replicas=NUM_RANKS,
        accumulation_steps=1,
        drop_last=True,
    )
    setup = RunSetup(
        run=run,
        plan=plan,
        config=Config(seed=seed, checkpoint=CheckpointConfig(keep=3)),
        target_steps=int(_PRODUCTIVE * end / _STEP_SECONDS),
        step_seconds=_STEP_SECONDS,
        sync_seconds=_SYNC_SECONDS,
        save_every=180,
        evaluate_every=720,
        follows_samples=False,
    )
    job = JobSetup(
        layout=LAYOUT,
        max_restarts=3,
        max_requeues=50,
        time_limit=DAY,
        signal_lead=LEAD_SECONDS,
        shutdown_seconds=shutdown_seconds(LEAD_SECONDS, is_requeued=True),
    )
    return Setting(job=job, setup=setup, faults=faults, max_jobs=len(faults) + 1)
