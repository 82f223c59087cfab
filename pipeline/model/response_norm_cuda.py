"""Response norm, ReLU and max-pool as one Triton kernel forward and one backward, channels-last.

A tile is positions × channels of one column. The sums over windows of channels are products with a
matrix of zeros and ones, on the tensor cores: those have nothing else to do here, and backward a
window's numbers are not in memory to be loaded from there. The tile is written as a sum of bfloat16
parts first, two of them for the 16-bit types, three, which is all of a float32, for float32; ones
and zeros are exact, and accumulation is in float32. So a NaN or an infinity takes all channels of
its column at its pixel with it.

The forward kernel walks down the rows of a stretch of pooled pixels. It normalises a row once, but
an even pixel twice, for the window where it is the first and the one where it is the third.

Longer than 250 lines: both kernels, and the functions that they share, are one subject.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from pipeline.model.response_norm import Norm

_NOWHERE = tl.constexpr(9)
"""The place of a pooled element that the ReLU has set to 0: no gradient goes back from it."""

_POSITIONS = 16
"""The least the tensor cores take. With it, and the numbers of warps and stages below, ptxas
spills no register of 16-bit maps in columns of up to 128 channels (sm_90)."""

_POOLED_ROWS = tl.constexpr(7)
"""That one program walks down: 27 and 13 are almost multiples, and each start costs a row."""


def forward(x: torch.Tensor, pooled: torch.Tensor, places: torch.Tensor, norm: Norm) -> None:
    """Fill what is pooled, and its places, as `_fused` of `pipeline.model.response_norm`."""
    count, _, pooled_height, pooled_width = pooled.shape
    tile = _tile(x, norm, norm.size // 2)
    num_groups = triton.cdiv(pooled_height, _POOLED_ROWS.value)
    _launch(
        _forward_kernel,
        (count * num_groups, triton.cdiv(pooled_width, _POSITIONS)),
        (x, pooled, places),
        norm,
        num_groups,
        tile,
        num_warps=4 if tile.block <= 64 else 8,
        num_stages=1,
    )


def backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    places: torch.Tensor,
    found: torch.Tensor,
    norm: Norm,
) -> None:
    """Fill the gradient of x with what follows from that of the pooled elements."""
    count, _, height, width = x.shape
    # A gradient needs its neighbours' denominators, and those their own neighbours.
    tile = _tile(x, norm, 2 * (norm.size // 2))
    tile = dataclasses.replace(tile, positions=32 if tile.block <= 64 else 16)
    num_stretches = triton.cdiv(height * width, tile.positions)
    _launch(
        _backward_kernel,
        (count * num_stretches,),
        (x, gradient, places, found),
        norm,
        num_stretches,
        tile,
        num_warps=8,
    )


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What a kernel is compiled for: which channels of a column a program has, and how many."""

    per_column: int
    half: int
    """Channels of a window on each side of its own."""
    block: int
    """Channels of a tile; the tensor cores want 16 at least."""
    halo: int
    """How many at each end are there for their neighbours' sake."""
    own: int
    """The others."""
    num: int
    """Tiles of a column."""
    positions: int
    relu_first: bool
    parts: int
    """Of bfloat16, of 8 bits each, that a number is the sum of."""


def _tile(x: torch.Tensor, norm: Norm, reach: int) -> Tile:
    per_column = x.shape[1] // norm.num_columns
    if per_column <= 128:
        block, halo = max(16, triton.next_power_of_2(per_column)), 0
    else:
        block, halo = max(128, triton.next_power_of_2(4 * reach)), reach
    own = block - 2 * halo
    return Tile(
        per_column=per_column,
        half=norm.size // 2,
        block=block,
        halo=halo,
        own=own,
        num=triton.cdiv(per_column, own),
        positions=_POSITIONS,
        relu_first=norm.relu_first,
        parts=3 if x.dtype == torch.float32 else 2,
    )


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: tuple[torch.Tensor, ...],
    norm: Norm,
    num_places: int,
    tile: Tile,
    **options: int,
) -> None:
    """Run the kernel with a program for each place of `grid` and tile; x is the first tensor."""
    x = tensors[0]
    count, channels, height, width = x.shape
    if count == 0:
        return
    with torch.cuda.device_of(x):
        kernel[(*grid, norm.num_columns * tile.num)](
            *(*tensors, norm.alpha, norm.k, height, width, channels, num_places, tile), **options
        )


def _compiled(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_compiled
def _channels(program: tl.tensor, tile: tl.constexpr) -> Any:
    """A tile's channels, which of them exist, and which are its own to write."""
    place = tl.arange(0, tile.block)
    in_column = program % tile.num * tile.own - tile.halo + place
    exists = (in_column >= 0) & (in_column < tile.per_column)
    is_own = exists & (place >= tile.halo) & (place < tile.block - tile.halo)
    return program // tile.num * tile.per_column + in_column, exists, is_own


@_compiled
def _band(tile: tl.constexpr) -> Any:
    """block×block ones where two channels are in each other's windows."""
    place = tl.arange(0, tile.block)
    in_window = tl.abs(place[:, None] - place[None, :]) <= tile.half
    return tl.where(in_window, 1.0, 0.0).to(tl.bfloat16)


@_compiled
def _window_sums(numbers: tl.tensor, band: tl.tensor, tile: tl.constexpr) -> Any:
    parts: tl.constexpr = tile.parts
    rest = numbers
    total = tl.zeros_like(numbers)
    for _ in tl.static_range(parts):
        part = rest.to(tl.bfloat16)
        total = tl.dot(part, band, total)
        rest -= part.to(tl.float32)
    return total


@_compiled
def _load(pointers: tl.tensor, exists: tl.tensor, tile: tl.constexpr) -> Any:
    """In float32, with ReLU if it comes first; that NaN is not below 0 lets it through."""
    numbers = tl.load(pointers, mask=exists, other=0.0).to(tl.float32)
    if tile.relu_first:
        numbers = tl.where(numbers < 0, 0.0, numbers)
    return numbers


@_compiled
def _larger(
    best: tl.tensor, places: tl.tensor, challenger: tl.tensor, challenger_places: tl.tensor
) -> Any:
    """torch's rule: of equals the first is the maximum, and NaN is larger than any number."""
    wins = (challenger > best) | (challenger != challenger)
    return tl.where(wins, challenger, best), tl.where(wins, challenger_places, places)


@_compiled
def _largest_across(
    pointers: tl.tensor,
    exists: tl.tensor,
    channels: tl.tensor,
    band: tl.tensor,
    alpha: tl.tensor,
    k: tl.tensor,
    first_place: tl.tensor,
    tile: tl.constexpr,
) -> Any:
    """Of three pixels of a row, the first of which are at the pointers, the largest normalised."""
    best = tl.full(exists.shape, float("-inf"), tl.float32)
    places = tl.zeros(exists.shape, tl.int32)
    for column in tl.static_range(3):
        numbers = _load(pointers + column * channels, exists, tile)
        root = tl.rsqrt(k + alpha * _window_sums(numbers * numbers, band, tile))
        normalized = numbers * (root * tl.sqrt(root))
        best, places = _larger(best, places, normalized, first_place + column)
    return best, places


@_compiled
def _forward_kernel(
    x: tl.tensor,
    pooled: tl.tensor,
    places: tl.tensor,
    alpha: tl.tensor,
    k: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    num_groups: tl.tensor,
    tile: tl.constexpr,
) -> None:
    """Program (image and group of pooled rows, stretch of a pooled row, block of channels)."""
    image = (tl.program_id(0) // num_groups).to(tl.int64)
    first_row = tl.program_id(0) % num_groups * _POOLED_ROWS
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    channel, channel_exists, is_own = _channels(tl.program_id(2), tile)
    pixel = tl.program_id(1) * tile.positions + tl.arange(0, tile.positions)
    pixel_exists = (pixel < pooled_width)[:, None]
    exists = pixel_exists & channel_exists[None, :]
    band = _band(tile)
    x_row = x + (image * height + 2 * first_row) * width * channels
    x_row += 2 * pixel[:, None] * channels + channel[None, :]
    step = width * channels
    best, best_places = _largest_across(x_row, exists, channels, band, alpha, k, 0, tile)
    for row in range(first_row, tl.minimum(first_row + _POOLED_ROWS, pooled_height)):
        second, second_places = _largest_across(
            x_row + step, exists, channels, band, alpha, k, 3, tile
        )
        third, third_places = _largest_across(
            x_row + 2 * step, exists, channels, band, alpha, k, 6, tile
        )
        best, best_places = _larger(best, best_places, second, second_places)
        best, best_places = _larger(best, best_places, third, third_places)
        is_dead = best <= 0
        at = (image * pooled_height + row) * pooled_width * channels
        at += pixel[:, None] * channels + channel[None, :]
        is_written = pixel_exists & is_own[None, :]
        tl.store(pooled + at, tl.where(is_dead, 0.0, best), mask=is_written)
        tl.store(places + at, tl.where(is_dead, _NOWHERE, best_places), mask=is_written)
        # The third row is the next window's first.
        best, best_places = third, third_places - 6
        x_row += 2 * step


@_compiled
def _backward_kernel(
    x: tl.tensor,
    gradient: tl.tensor,
    places: tl.tensor,
    found: tl.tensor,
    alpha: tl.tensor,
    k: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    num_stretches: tl.tensor,
    tile: tl.constexpr,
) -> None:
    """Program (image and stretch of its pixels, block of channels).

    With ReLU first nothing else is to be done for it: a place whose ReLU is 0 is NOWHERE, and of
    the gradient by way of the denominators x is a factor.
    """
    image = (tl.program_id(0) // num_stretches).to(tl.int64)
    pixel = tl.program_id(0) % num_stretches * tile.positions + tl.arange(0, tile.positions)
    pixel_exists = pixel < height * width
    row, column = pixel // width, pixel % width
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    channel, channel_exists, is_own = _channels(tl.program_id(1), tile)
    unpooled = tl.full((tile.positions, tile.block), 0.0, tl.float32)
    # Of the windows above and below, left and right; an odd row or column is in one only.
    for above in tl.static_range(2):
        for left in tl.static_range(2):
            pooled_row, pooled_column = row // 2 - above, column // 2 - left
            kernel_row, kernel_column = row - 2 * pooled_row, column - 2 * pooled_column
            is_window = pixel_exists & (pooled_row >= 0) & (pooled_row < pooled_height)
            is_window &= (pooled_column >= 0) & (pooled_column < pooled_width)
            is_window &= (kernel_row < 3) & (kernel_column < 3)
            at = (image * pooled_height + pooled_row) * pooled_width + pooled_column
            at = at[:, None] * channels + channel[None, :]
            exists = is_window[:, None] & channel_exists[None, :]
            place = tl.load(places + at, mask=exists, other=_NOWHERE).to(tl.int32)
            came = tl.load(gradient + at, mask=exists, other=0.0).to(tl.float32)
            is_from_here = place == (3 * kernel_row + kernel_column)[:, None]
            unpooled += tl.where(is_from_here, came, 0.0)
    band = _band(tile)
    at = (image * height * width + pixel)[:, None] * channels + channel[None, :]
    numbers = _load(x + at, pixel_exists[:, None] & channel_exists[None, :], tile)
    root = tl.rsqrt(k + alpha * _window_sums(numbers * numbers, band, tile))
    direct = unpooled * (root * tl.sqrt(root))
    shared = _window_sums(direct * numbers * (root * root), band, tile)
    # 2 · 0.75 · alpha · x · Σ g · x · s^-1.75
    result = direct - 1.5 * alpha * numbers * shared
    tl.store(found + at, result, mask=pixel_exists[:, None] & is_own[None, :])
