"""Response norm, ReLU and max-pool as one Triton kernel forward and one backward, channels-last.

A tile is positions × channels of one column. The sums over windows of channels are products with a
matrix of zeros and ones, on the tensor cores: those have nothing else to do here, and backward a
window's numbers are not in memory to be loaded from there. The tile is written as a sum of bfloat16
parts first, two of them for the 16-bit types, three, which is all of a float32, for float32; ones
and zeros are exact, and accumulation is in float32. So a NaN or an infinity takes all channels of
its column at its pixel with it.

The forward kernel walks down the rows of a stretch of pooled pixels. It normalises a row once, but
an even pixel twice, for the window where it is the first and the one where it is the third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from pipeline.model.response_norm import FusedNorm

_NOWHERE = tl.constexpr(9)
"""The place of a pooled element that the ReLU has set to 0: no gradient goes back from it."""

_POSITIONS = 16
"""The least the tensor cores take. With it, and the numbers of warps and stages below, ptxas
spills no register of 16-bit maps in columns of up to 128 channels (sm_90)."""

_POOLED_ROWS = 7
"""That one program walks down: 27 and 13 are almost multiples, and each start costs a row."""


def forward(x: torch.Tensor, norm: FusedNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """N×C×H×W to the pooled elements and, uint8, their places, as `_fused` of
    `pipeline.model.response_norm`; all three channels-last."""
    count, channels, height, width = x.shape
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    shape = (count, pooled_height, pooled_width, channels)
    pooled, places = x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)
    tiles = _tiles(channels // norm.num_columns, norm.size // 2)
    num_groups = triton.cdiv(pooled_height, _POOLED_ROWS)
    _launch(
        _forward_kernel,
        (count * num_groups, triton.cdiv(pooled_width, _POSITIONS)),
        (x, pooled, places),
        norm,
        tiles,
        num_groups,
        POSITIONS=_POSITIONS,
        POOLED_ROWS=_POOLED_ROWS,
        num_warps=4 if tiles.block <= 64 else 8,
        num_stages=1,
    )
    return pooled.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)


def backward(
    gradient: torch.Tensor, x: torch.Tensor, places: torch.Tensor, norm: FusedNorm
) -> torch.Tensor:
    """The pooled elements' gradient to that of x N×C×H×W; all four channels-last."""
    count, channels, height, width = x.shape
    found = x.new_empty((count, height, width, channels))
    # A gradient needs its neighbours' denominators, and those their own neighbours.
    tiles = _tiles(channels // norm.num_columns, 2 * (norm.size // 2))
    positions = 32 if tiles.block <= 64 else 16
    num_stretches = triton.cdiv(height * width, positions)
    _launch(
        _backward_kernel,
        (count * num_stretches,),
        (x, gradient, places, found),
        norm,
        tiles,
        num_stretches,
        POSITIONS=positions,
        num_warps=8,
    )
    return found.permute(0, 3, 1, 2)


class _Tiles(NamedTuple):
    """How the channels of a column are divided."""

    block: int
    """Channels of a tile; the tensor cores want 16 at least."""
    halo: int
    """How many at each end are there for their neighbours' sake."""
    num: int


def _tiles(per_column: int, reach: int) -> _Tiles:
    if per_column <= 128:
        return _Tiles(max(16, triton.next_power_of_2(per_column)), 0, 1)
    block = max(128, triton.next_power_of_2(4 * reach))
    return _Tiles(block, reach, triton.cdiv(per_column, block - 2 * reach))


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: tuple[torch.Tensor, ...],
    norm: FusedNorm,
    tiles: _Tiles,
    num_places: int,
    **constants: int,
) -> None:
    """Run the kernel with a program for each place of `grid` and tile; x is the first tensor.

    The sums of a tile are made of bfloat16 numbers, of 8 bits each.
    """
    x = tensors[0]
    count, channels, height, width = x.shape
    if count == 0:
        return
    with torch.cuda.device_of(x):
        kernel[(*grid, norm.num_columns * tiles.num)](
            *(*tensors, norm.alpha, norm.k, height, width, channels, num_places),
            PER_COLUMN=channels // norm.num_columns,
            HALF=norm.size // 2,
            BLOCK=tiles.block,
            HALO=tiles.halo,
            NUM_BLOCKS=tiles.num,
            RELU_FIRST=norm.relu_first,
            PARTS=3 if x.dtype == torch.float32 else 2,
            **constants,
        )


def _compiled(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_compiled
def _channels(
    program: tl.tensor,
    PER_COLUMN: tl.constexpr,
    BLOCK: tl.constexpr,
    HALO: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
) -> Any:
    """A tile's channels, which of them exist, and which are its own to write."""
    place = tl.arange(0, BLOCK)
    in_column = program % NUM_BLOCKS * (BLOCK - 2 * HALO) - HALO + place
    exists = (in_column >= 0) & (in_column < PER_COLUMN)
    is_own = exists & (place >= HALO) & (place < BLOCK - HALO)
    return program // NUM_BLOCKS * PER_COLUMN + in_column, exists, is_own


@_compiled
def _band(BLOCK: tl.constexpr, HALF: tl.constexpr) -> Any:
    """BLOCK×BLOCK ones where two channels are in each other's windows."""
    place = tl.arange(0, BLOCK)
    in_window = tl.abs(place[:, None] - place[None, :]) <= HALF
    return tl.where(in_window, 1.0, 0.0).to(tl.bfloat16)


@_compiled
def _window_sums(tile: tl.tensor, band: tl.tensor, PARTS: tl.constexpr) -> Any:
    rest = tile
    total = tl.zeros_like(tile)
    for _ in tl.static_range(PARTS):
        part = rest.to(tl.bfloat16)
        total = tl.dot(part, band, total)
        rest -= part.to(tl.float32)
    return total


@_compiled
def _load(pointers: tl.tensor, exists: tl.tensor, RELU_FIRST: tl.constexpr) -> Any:
    """In float32, with ReLU if it comes first; that NaN is not below 0 lets it through."""
    tile = tl.load(pointers, mask=exists, other=0.0).to(tl.float32)
    if RELU_FIRST:
        tile = tl.where(tile < 0, 0.0, tile)
    return tile


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
    RELU_FIRST: tl.constexpr,
    PARTS: tl.constexpr,
) -> Any:
    """Of three pixels of a row, the first of which are at the pointers, the largest normalised."""
    best = tl.full(exists.shape, float("-inf"), tl.float32)
    places = tl.zeros(exists.shape, tl.int32)
    for column in tl.static_range(3):
        tile = _load(pointers + column * channels, exists, RELU_FIRST)
        root = tl.rsqrt(k + alpha * _window_sums(tile * tile, band, PARTS))
        normalized = tile * (root * tl.sqrt(root))
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
    PER_COLUMN: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HALO: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    POSITIONS: tl.constexpr,
    POOLED_ROWS: tl.constexpr,
    RELU_FIRST: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Program (image and group of pooled rows, stretch of a pooled row, block of channels)."""
    image = (tl.program_id(0) // num_groups).to(tl.int64)
    first_row = tl.program_id(0) % num_groups * POOLED_ROWS
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    channel, channel_exists, is_own = _channels(
        tl.program_id(2), PER_COLUMN, BLOCK, HALO, NUM_BLOCKS
    )
    pixel = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    pixel_exists = (pixel < pooled_width)[:, None]
    exists = pixel_exists & channel_exists[None, :]
    band = _band(BLOCK, HALF)
    x_row = x + (image * height + 2 * first_row) * width * channels
    x_row += 2 * pixel[:, None] * channels + channel[None, :]
    step = width * channels
    best, best_places = _largest_across(
        x_row, exists, channels, band, alpha, k, 0, RELU_FIRST, PARTS
    )
    for row in range(first_row, tl.minimum(first_row + POOLED_ROWS, pooled_height)):
        second, second_places = _largest_across(
            x_row + step, exists, channels, band, alpha, k, 3, RELU_FIRST, PARTS
        )
        third, third_places = _largest_across(
            x_row + 2 * step, exists, channels, band, alpha, k, 6, RELU_FIRST, PARTS
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
    PER_COLUMN: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HALO: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    POSITIONS: tl.constexpr,
    RELU_FIRST: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Program (image and stretch of its pixels, block of channels).

    With ReLU first nothing else is to be done for it: a place whose ReLU is 0 is NOWHERE, and of
    the gradient by way of the denominators x is a factor.
    """
    image = (tl.program_id(0) // num_stretches).to(tl.int64)
    pixel = tl.program_id(0) % num_stretches * POSITIONS + tl.arange(0, POSITIONS)
    pixel_exists = pixel < height * width
    row, column = pixel // width, pixel % width
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    channel, channel_exists, is_own = _channels(
        tl.program_id(1), PER_COLUMN, BLOCK, HALO, NUM_BLOCKS
    )
    unpooled = tl.zeros((POSITIONS, BLOCK), tl.float32)
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
    band = _band(BLOCK, HALF)
    at = (image * height * width + pixel)[:, None] * channels + channel[None, :]
    tile = _load(x + at, pixel_exists[:, None] & channel_exists[None, :], RELU_FIRST)
    root = tl.rsqrt(k + alpha * _window_sums(tile * tile, band, PARTS))
    direct = unpooled * (root * tl.sqrt(root))
    shared = _window_sums(direct * tile * (root * root), band, PARTS)
    # 2 · 0.75 · alpha · x · Σ g · x · s^-1.75
    result = direct - 1.5 * alpha * tile * shared
    tl.store(found + at, result, mask=pixel_exists[:, None] & is_own[None, :])
