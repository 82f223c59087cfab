"""Compares the replicas' weights, and ends the run where they are not the same."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from pipeline.optim.fingerprint import (
    are_equal,
    find_difference,
    fingerprint,
    held_by,
    of_each,
)
from pipeline.run.events import ReplicasDiffer
from pipeline.train.components import Components


class ReplicaCheck:
    """For one job; all ranks call it together."""

    def __init__(self, components: Components) -> None:
        self._components = components
        is_wanted = components.config.distributed.compare_replicas
        self._is_on = is_wanted and components.mesh.num_replicas > 1

    def fingerprint(self) -> torch.Tensor:
        """Of this rank's weights and moments, on the device, and without waiting for it.

        0 if nothing is compared.
        """
        components = self._components
        if not self._is_on:
            return torch.zeros((), dtype=torch.int64, device=components.world.device)
        return fingerprint(held_by(components.replica.model).values())

    def check(self, fingerprints: Sequence[int]) -> None:
        """Raise `ValueError` on all ranks if those of the ranks, in order, are not the same.

        Before that the ranks concerned say so in their metrics, and rank 0 in the run's events.
        """
        components = self._components
        if not self._is_on:
            return
        components.journal.compared_replicas()
        per_replica = components.mesh.ranks_per_replica
        if are_equal(fingerprints, per_replica):
            return
        held, own = held_by(components.replica.model), fingerprints[components.world.rank]
        mine = socket.gethostname(), of_each(held, own)
        hosts, found = zip(*components.world.all_gather_object(mine), strict=True)
        difference = find_difference(found, per_replica)
        assert difference is not None, "of_each has the fingerprints that differ"
        if components.world.rank in difference.ranks:
            components.metrics.record_difference()
        names = [f"rank {rank} on {hosts[rank]}" for rank in difference.ranks]
        who = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        if difference.is_decided:
            what = f"{who} {'differs' if len(names) == 1 else 'differ'} from the others"
        else:
            what = f"{who} differ, and it is undecided which is right"
        step, rank = components.progress.step, difference.ranks[0]
        event = ReplicasDiffer(
            step=step,
            epoch=components.epoch,
            rank=rank if difference.is_decided else None,
            host=hosts[rank] if difference.is_decided else None,
            tensor=difference.tensor,
            what=what,
        )
        components.journal.replicas_differ(event)
        raise ValueError(
            f"the replicas differ at step {step}, first in {difference.tensor}: {what}. Nothing is "
            "saved; the same command goes on from the last checkpoint. If it happens again, look "
            "for a fault in that host's memory or device"
        )
