"""The two columns of the 2012 network: held by one rank, or by two that exchange activations.

One set of weights, two layouts. A checkpoint holds the weights of both columns under one name; the
rank of one column has its part of each:

    conv1 … conv5, fc6, fc7    its half of the outputs (rows of the weight, and of the bias)
    fc8                        its half of the inputs (columns of the weight); column 0 has the bias

Section 3.5 and figure 2 of the paper: columns see each other in conv3, fc6, fc7 and fc8 only. The
2012 code gives the whole of fc8 to one GPU, which costs 2,048 numbers an image there and as many
back. Here each rank adds up its own half of the inputs, and the sums are exchanged: 1,000 numbers
and nothing back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

NUM_COLUMNS = 2

_LAST_WEIGHT, _LAST_BIAS = "fc8.weight", "fc8.bias"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns a rank holds, and the way to the rank that holds the other one."""

    column: int | None = None
    """The one column that is held; None: both."""
    group: dist.ProcessGroup | None = None
    """The ranks of both columns of a replica, in order."""

    @property
    def num_held(self) -> int:
        return NUM_COLUMNS if self.column is None else 1

    @property
    def first_held(self) -> int:
        return self.column or 0

    def join(self, held: torch.Tensor) -> torch.Tensor:
        """The held columns' channels N×C×… to those of both columns, N×2C×… where one is held."""
        if self.column is None:
            return held
        joined: torch.Tensor = _Join.apply(held, self.group)  # type: ignore[no-untyped-call]
        return joined

    def add(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over both columns of what each makes of its inputs; the same bits on both."""
        if self.column is None:
            return partial
        total: torch.Tensor = _Add.apply(partial, self.group)  # type: ignore[no-untyped-call]
        return total


BOTH = Columns()
"""One rank holds both columns."""


class ExchangeError(RuntimeError):
    """The rank of the other column was killed, hangs, or its host is gone."""


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """gloo raises a plain `RuntimeError`, as much else does: only the place tells what it means."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(str(error)) from error


@_exchanging()
def _gather(held: torch.Tensor, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    parts = [torch.empty_like(held) for _ in range(NUM_COLUMNS)]
    dist.all_gather(parts, held, group=group)
    return parts


class _Join(torch.autograd.Function):
    """Concatenates both ranks' channels; a gradient is the sum of what both ranks have for it."""

    @staticmethod
    def forward(context: Any, held: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        context.group = group
        parts = _gather(held.movedim(1, -1).contiguous(), group)
        return torch.cat(parts, dim=-1).movedim(-1, 1)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        halves = [half.movedim(1, -1).contiguous() for half in gradient.chunk(NUM_COLUMNS, dim=1)]
        sent = torch.stack(halves)
        received = torch.empty_like(sent)
        with _exchanging():
            dist.all_to_all_single(received, sent, group=context.group)
        return (received[0] + received[1]).movedim(-1, 1), None


class _Add(torch.autograd.Function):
    """Adds both ranks' tensors. Both ranks then compute one and the same loss, so its gradient is
    that of each summand, and nothing has to be sent."""

    @staticmethod
    def forward(context: Any, partial: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        context.dtype = partial.dtype
        first, second = _gather(partial.contiguous(), group)
        return first.float() + second.float()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.to(context.dtype), None


def has_part(name: str, column: int | None) -> bool:
    """Whether a rank that holds this column (None: both) has a part of the parameter `name`."""
    return name != _LAST_BIAS or column != 1


def part_of(name: str, whole: torch.Tensor, column: int | None) -> torch.Tensor:
    """That part of the parameter, or of a tensor of the optimizer in its shape; whole scalars."""
    if column is None or whole.ndim == 0 or name == _LAST_BIAS:
        return whole
    return whole.chunk(NUM_COLUMNS, dim=_divided_dimension(name))[column].contiguous()


def parts_of(whole: Mapping[str, torch.Tensor], column: int | None) -> dict[str, torch.Tensor]:
    """The parts of a state dict that a rank of this column holds."""
    return {
        name: part_of(name, tensor, column)
        for name, tensor in whole.items()
        if has_part(name, column)
    }


def whole_of(name: str, part: torch.Tensor, columns: Columns) -> torch.Tensor:
    """The inverse of `part_of`; both ranks of a replica call it for the same names."""
    if columns.column is None or part.ndim == 0 or name == _LAST_BIAS:
        return part
    return torch.cat(_gather(part.contiguous(), columns.group), dim=_divided_dimension(name))


def _divided_dimension(name: str) -> int:
    return 1 if name == _LAST_WEIGHT else 0
