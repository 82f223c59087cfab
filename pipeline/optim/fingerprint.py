"""64 bits that tell whether replicas hold the same bits, and which rank and tensor do not.

All values of a replica are numbered, tensor by tensor, and value i has a 32-bit pattern x_i. The
fingerprint is the sum of x_i · (2i + 1) modulo 2⁶⁴. What is certain of it, for i below 2³¹:

- One flipped bit changes it. The sum changes by ±2ᵇ (2i + 1) with b < 32; the second factor is odd,
  so this is no multiple of 2⁶⁴. So does any other change of one value: 0 < |x_i − x'_i| < 2³², and
  a product of that with an odd number has fewer than 32 factors 2.
- Two different values that change places change it: by (x_i − x_j) · 2(j − i), which is not 0, and
  smaller than 2³² · 2³² in size.

Other differences have about one chance in 2⁶⁴ to go unseen. Nothing here waits for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_COLUMNS = 4096
_SMALL_VALUES = 1 << 18
"""Tensors of at most so many values are put together: on a GPU each piece costs ten launches."""

ALL_TENSORS = "all tensors together"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tensor that is not the same in all replicas."""

    tensor: str
    ranks: tuple[int, ...]
    """Those whose bits are not those of most; all that hold the tensor if there is no majority."""
    is_decided: bool
    """Whether there is a majority."""


def held_by(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights and the moments of BatchNorm, by name."""
    held = model.state_dict().items()
    return {name: tensor for name, tensor in held if tensor.is_floating_point()}


def fingerprint(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The fingerprint of fp32 tensors on one device: int64, without dimensions, on that device."""
    first, parts = 0, []
    for values in _pieces(tensors):
        whole = len(values) // _COLUMNS * _COLUMNS
        for start, part in ((first, values[:whole]), (first + whole, values[whole:])):
            if len(part):
                parts.append(_part(part.view(-1, min(_COLUMNS, len(part))), start))
        first += len(values)
    return torch.stack(parts).sum()


def _part(rows: torch.Tensor, first: int) -> torch.Tensor:
    """What the values int32 K×L, numbered from `first`, add to the fingerprint.

    Value i is `first` + L k + c in row k and column c, so sums of rows and columns are enough:
    2i + 1 = 2 (first + L k) + (2c + 1).
    """
    rows_of, width = torch.arange(rows.shape[0], device=rows.device), rows.shape[1]
    columns = torch.arange(width, device=rows.device)
    of_rows = _sum(rows, 1) * (2 * (first + width * rows_of))
    return of_rows.sum() + (_sum(rows, 0) * (2 * columns + 1)).sum()


def _sum(rows: torch.Tensor, dimension: int) -> torch.Tensor:
    """The int64 sums of int32 values. On a CPU torch would copy all of them to int64 first."""
    if rows.is_cuda:
        return rows.sum(dimension)
    return torch.from_numpy(rows.numpy().sum(axis=dimension, dtype=np.int64))


def _pieces(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The bits of all values, int32 N: of each large tensor, without a copy, then of the others."""
    bits = [_bits(tensor) for tensor in tensors]
    yield from (values for values in bits if len(values) > _SMALL_VALUES)
    small = [values for values in bits if len(values) <= _SMALL_VALUES]
    if small:
        yield torch.cat(small)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of fp32 values in the order of memory, where that has no gaps; int32 N."""
    values = tensor.detach()
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.movedim(1, -1)
    return values.reshape(-1).view(torch.int32)


def halves_of(fingerprint: torch.Tensor) -> torch.Tensor:
    """The upper and lower 32 bits as numbers that float64 holds exactly: [2], on its device."""
    return torch.stack([fingerprint >> 32, fingerprint & 0xFFFFFFFF]).double()


def of_each(tensors: Mapping[str, torch.Tensor], of_all: int) -> dict[str, int]:
    """The fingerprint of each tensor, for which this waits, and the one that was found `of_all`."""
    found = {name: int(fingerprint([tensor])) for name, tensor in tensors.items()}
    return found | {ALL_TENSORS: of_all}


def are_equal(fingerprints: Sequence[object], ranks_per_replica: int) -> bool:
    """Whether all replicas have one fingerprint; each column of split ones has its own."""
    kinds = (set(fingerprints[column::ranks_per_replica]) for column in range(ranks_per_replica))
    return all(len(kind) == 1 for kind in kinds)


def find_difference(
    of_ranks: Sequence[Mapping[str, int]], ranks_per_replica: int
) -> Difference | None:
    """The first tensor that differs, by what `of_each` says on each rank; None: none does.

    Three replicas or more can give a majority; of two, nobody knows which is right. Ranks of a
    split replica are compared with those of the same column.
    """
    for name in of_ranks[0]:  # column 0 holds all names
        for column in range(ranks_per_replica):
            ranks = range(column, len(of_ranks), ranks_per_replica)
            values = [of_ranks[rank].get(name) for rank in ranks]
            ((common, count), *others) = Counter(values).most_common()
            if not others:
                continue
            is_decided = count > len(values) / 2
            odd = [
                rank
                for rank, value in zip(ranks, values, strict=True)
                if value != common or not is_decided
            ]
            return Difference(name, tuple(odd), is_decided)
    return None
