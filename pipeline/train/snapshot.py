"""A copy of a state in memory of the host: the steps that follow do not change it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from data_prep.shard_set.memory import MOST_OF_FREE, host_free_bytes
from pipeline.run.checkpoint import num_bytes_of


class Snapshots:
    """Takes copies, one at a time, into memory that it allocates once and keeps.

    A GPU copies the state on the device first, which takes a moment; from there it goes to pinned
    memory in a stream of its own, while the steps go on in theirs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._kept: dict[tuple[str, ...], torch.Tensor] = {}

    def take(self, state: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Copy `state`, of tensors and plain values, in the order of the steps.

        Returns what gives the copy to any thread, once the device has it; the next call overwrites
        it. Raises `MemoryError` with a sentence, and then keeps no memory.
        """
        if not self._kept:
            needed, free = num_bytes_of(state), host_free_bytes()
            if needed > MOST_OF_FREE * free:
                raise MemoryError(
                    f"a copy of the state takes {needed / 1e6:,.1f} MB of memory, and of the "
                    f"{free / 1e6:,.1f} MB that are free {MOST_OF_FREE:.0%} may be taken"
                )
        try:
            copied = self._copy(state, ())
        except RuntimeError as error:  # of an allocator, which has no type of its own on the host
            self._kept.clear()
            what = str(error).partition("\n")[0].partition(". ")[0]
            raise MemoryError(f"no memory for a copy of the state ({what})") from error
        event = None if self._stream is None else self._stream.record_event()
        return partial(_finished, copied, event)

    def _copy(self, value: Any, name: tuple[str, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value, name)
        if isinstance(value, dict):
            return {key: self._copy(part, (*name, key)) for key, part in value.items()}
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: torch.Tensor, name: tuple[str, ...]) -> torch.Tensor:
        """With its strides: a file of the copy has the order of memory that the original has."""
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, pin_memory=tensor.is_cuda
            )
        if self._stream is None or not tensor.is_cuda:
            return kept.copy_(tensor)
        aside = tensor.clone()
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            kept.copy_(aside, non_blocking=True)
        aside.record_stream(self._stream)  # its memory is not used again before that is done
        return kept


def _finished(state: dict[str, Any], event: torch.cuda.Event | None) -> dict[str, Any]:
    if event is not None:
        event.synchronize()
    return state
