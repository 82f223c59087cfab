"""The figures of a run under fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measurement import spread
from benchmarks.under_fire.faults import CUT_SECONDS, FULL_SECONDS
from benchmarks.under_fire.goodput import Caused, Cost, measure
from benchmarks.under_fire.history import History
from benchmarks.under_fire.recipe import MAX_RESTARTS, NUM_TRAIN
from benchmarks.under_fire.schedule import ENDS_A_RANK, KINDS, NUM_RANKS, Fault


def figures(
    faults: Sequence[Fault],
    caused: Sequence[Caused],
    training: Mapping[str, object],
    history: History,
    undisturbed: History,
    *,
    is_equal: bool,
    num_launches: int,
) -> dict[str, Any]:
    found, quiet = measure(history, caused), measure(undisturbed, [])
    slower = quiet.step_seconds / found.step_seconds
    of_ends = found.share_of(ENDS_A_RANK)
    return {
        "claim": "a job with a fault a minute ends with the weights of one left alone, bit for bit",
        "ranks": NUM_RANKS,
        "train_samples": NUM_TRAIN,
        "options_of_training": dict(training),
        "max_restarts_of_torchrun": MAX_RESTARTS,
        "disk_full_seconds": FULL_SECONDS,
        "cable_out_seconds": CUT_SECONDS,
        "weights_are_equal": is_equal,
        "steps": len(history.kept),
        "whole_epochs_with_each_sample_once": history.num_epochs,
        "steps_told_of_by_the_next_attempt": history.num_told_late,
        "steps_done_again": len(history.done) - len(history.kept),
        "attempts": len(history.begins),
        "launches_of_two_nodes": num_launches,
        "wall_seconds": round(found.wall_seconds, 1),
        "step_seconds": round(found.step_seconds, 4),
        "step_seconds_of_undisturbed_run": round(quiet.step_seconds, 4),
        "goodput": round(found.share, 4),
        "goodput_at_pace_of_undisturbed_run": round(found.share * slower, 4),
        "goodput_where_a_rank_ends": None if of_ends is None else round(of_ends, 4),
        "kinds": {
            kind: _of_kind([cost for cost in found.costs if cost.kind == kind])
            for kind in KINDS
            if any(cost.kind == kind for cost in found.costs)
        },
        "faults": [
            {
                **asdict(fault),
                "caused_seconds": round(one.time - history.done[0].time, 3),
                "lost_seconds": round(cost.lost_seconds, 2),
                "attempts": cost.num_attempts,
            }
            for fault, one, cost in zip(faults, caused, found.costs, strict=True)
        ],
    }


def _of_kind(costs: Sequence[Cost]) -> dict[str, Any]:
    to_next = [cost.next_step_seconds for cost in costs if cost.next_step_seconds is not None]
    lost = sum(cost.lost_seconds for cost in costs)
    return {
        "goodput": round(1 - lost / sum(cost.seconds for cost in costs), 4),
        "lost_seconds": spread([cost.lost_seconds for cost in costs], 2),
        "seconds_to_next_step": spread(to_next, 2) if to_next else None,
        "attempts": spread([cost.num_attempts for cost in costs], 0),
    }
