"""Saves a checkpoint: rank 0 writes it, and all ranks learn how that went."""

from __future__ import annotations

import json
import time
from typing import Any

from pipeline.ranks.failure import sentence_of
from pipeline.run import checkpoint
from pipeline.run.events import CheckpointReason
from pipeline.run.phase import Phase
from pipeline.train.components import Components


def save(
    components: Components, reason: CheckpointReason, best_top1: float | None = None
) -> str | None:
    """Save the run as it is, as the best checkpoint if `best_top1` is given; all ranks call it.

    Returns what was wrong with the disk, which costs this checkpoint only; None: it is saved.
    Raises `ValueError` if a weight is not a number.
    """
    world, progress, replica = components.world, components.progress, components.replica
    components.enter(Phase.AGREEING)
    if not all(world.all_gather_object(replica.is_finite())):
        raise ValueError(
            f"a weight is not a number at step {progress.step}: training has diverged, "
            "nothing is saved; lower optim.learning_rate"
        )
    marked = progress.marked
    if best_top1 is not None:
        progress.marked = progress.step, best_top1
    state = _state(components) if components.mesh.replica == 0 else None
    components.enter(Phase.SAVING)
    error = None
    if world.is_main:
        assert state is not None
        error = _write(components, reason, state)
        components.enter(Phase.AGREEING)  # only the others may wait as long as saving takes
    error = world.broadcast_object(error)
    if error is not None:
        progress.marked = marked
    return error


def _state(components: Components) -> dict[str, Any]:
    return components.replica.state_dict() | {
        "progress": components.progress.state_dict(),
        "settings": json.dumps(components.settings.to_json()),
    }


def _write(components: Components, reason: CheckpointReason, state: dict[str, Any]) -> str | None:
    """Write and record it; returns what went wrong."""
    step, directory = components.progress.step, components.run.checkpoints
    begin = time.perf_counter()
    try:
        path, num_bytes = checkpoint.save(directory, step, state)
    except OSError as error:
        return sentence_of(error)
    seconds = time.perf_counter() - begin
    components.journal.checkpointed(step, path, num_bytes=num_bytes, seconds=seconds, reason=reason)
    try:  # the next save makes up for what fails
        if components.progress.marked is not None:
            checkpoint.mark_best(directory, components.progress.marked[0])
        checkpoint.prune(directory, components.config.checkpoint.keep)
    except OSError as error:
        components.journal.console.line(
            f"warning: the best checkpoint not marked or old ones not deleted: {sentence_of(error)}"
        )
    return None
