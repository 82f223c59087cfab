"""Response norm, ReLU and max-pool in one pass over channels-last rows, compiled by numba.

A kernel takes one row of an image after the other. It spreads the row out in float32, even pixels
first, then the odd ones, with zeros between the columns of channels:

    half zeros, [pixel 0: column 0, half zeros, column 1, half zeros], [pixel 2: …], …, [pixel 1: …]

In this layout a window of channels never meets another column, the three pixels of a pool are three
stretches of memory, and so every step is one long loop that LLVM turns into vector instructions.
`slot` is the length of one pixel. Such rows stay in the cache; memory sees each tensor once.

Images are shared among threads, and no image's result depends on which thread it was. The threads
are Python's. numba's own can be those of torch's OpenMP, which spares 3 milliseconds a call behind
a kernel of torch, whose threads go on spinning; but compiling for them takes five times as long.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.model.response_norm import FusedNorm

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

_PIECES_PER_THREAD = 4
"""So that the threads end together where another process has disturbed one of them."""

_ZERO, _ONE = np.float32(0), np.float32(1)

_NOWHERE = np.float32(9)
"""The place of a pooled element that the ReLU has set to 0: no gradient goes back from it."""


def forward(x: torch.Tensor, norm: FusedNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """N×C×H×W to the pooled elements and, uint8, their places, as `_fused` of
    `pipeline.model.response_norm`; all three channels-last."""
    count, channels, height, width = x.shape
    shape = (count, (height - 1) // 2, (width - 1) // 2, channels)
    pooled, places = x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)
    _share(_forward, norm, _rows(x), _array(pooled), _array(places))
    return pooled.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)


def backward(
    gradient: torch.Tensor, x: torch.Tensor, places: torch.Tensor, norm: FusedNorm
) -> torch.Tensor:
    """The pooled elements' gradient to that of x N×C×H×W; all four channels-last."""
    found = x.new_empty(x.permute(0, 2, 3, 1).shape)
    _share(_backward, norm, _rows(gradient), _rows(x), _rows(places), _array(found))
    return found.permute(0, 3, 1, 2)


def _rows(maps: torch.Tensor) -> Array:
    return _array(maps.detach().permute(0, 2, 3, 1))


def _array(rows: torch.Tensor) -> Array:
    """numba has neither of the 16-bit floats: it sees their bits, unsigned for bfloat16."""
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.uint16)
    elif rows.dtype == torch.float16:
        rows = rows.view(torch.int16)
    return rows.numpy()


def _share(kernel: Callable[..., None], norm: FusedNorm, *arrays: Array) -> None:
    """Calls the kernel for all images, with as many threads as torch has for its own kernels.

    The window is a tuple so that its length is part of its type: the compiler unrolls the loop over
    it.
    """
    window, per_column = (0,) * norm.size, arrays[0].shape[-1] // norm.num_columns
    constants = window, np.float32(norm.alpha), np.float32(norm.k), per_column, norm.relu_first
    count, num_threads = len(arrays[0]), torch.get_num_threads()
    if num_threads == 1 or count < 2:
        kernel(*arrays, *constants)
        return
    num_pieces = min(count, num_threads * _PIECES_PER_THREAD)
    bounds = [piece * count // num_pieces for piece in range(num_pieces + 1)]

    def call(first: int, end: int) -> None:
        kernel(*(array[first:end] for array in arrays), *constants)

    # Reading the results raises what a piece has raised.
    list(_threads(num_threads, os.getpid()).map(call, bounds[:-1], bounds[1:]))


@functools.lru_cache(maxsize=1)
def _threads(count: int, _process: int) -> ThreadPoolExecutor:
    """Of this process: a fork takes no threads along."""
    return ThreadPoolExecutor(count, thread_name_prefix="response-norm")


def _compiled(function: Function) -> Function:
    """Machine code without the GIL.

    Fast maths may contract. It may not assume that NaN is absent, nor take a reciprocal for a
    division: LLVM does so in a loop's vectors and not in what is left over at its end, and equal
    pixels would then differ.
    """

    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "nsz"},
    }
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no place to keep it, neither beside this file nor in the home
        return cast(Function, numba.njit(**options)(function))


def _generated(function: Function) -> Callable[..., Any]:
    """A call of it is the LLVM code it returns; what numba passes as the first argument is not
    among the call's."""
    return cast(Callable[..., Any], intrinsic(function))


@_generated
def _widened(_typing: Any, number: Any) -> Any:
    """An element of a tensor, as `_array` shows it, as float32."""

    def generate(_: Any, build: Any, __: Any, arguments: Any) -> Any:
        if number == types.uint16:
            word = build.zext(arguments[0], ir.IntType(32))
            return build.bitcast(build.shl(word, word.type(16)), ir.FloatType())
        if number == types.int16:
            return build.fpext(build.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        if number == types.uint8:
            return build.uitofp(arguments[0], ir.FloatType())
        return arguments[0]

    return types.float32(number), generate


@_generated
def _narrowed(_typing: Any, number: Any, like: Any) -> Any:
    """A float32 as an element of the type of `like`, rounded to nearest even; NaN stays NaN."""

    def generate(_: Any, build: Any, __: Any, arguments: Any) -> Any:
        if like == types.uint16:
            bits = build.bitcast(arguments[0], ir.IntType(32))
            constant = bits.type
            is_odd = build.and_(build.lshr(bits, constant(16)), constant(1))
            nearest = build.add(build.add(bits, constant(0x7FFF)), is_odd)
            is_nan = build.fcmp_unordered("uno", arguments[0], arguments[0])
            bits = build.select(is_nan, constant(0x7FC00000), nearest)
            return build.trunc(build.lshr(bits, constant(16)), ir.IntType(16))
        if like == types.int16:
            return build.bitcast(build.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))
        if like == types.uint8:
            return build.fptoui(arguments[0], ir.IntType(8))
        return arguments[0]

    return like(number, like), generate


@_compiled
def _forward(
    images: Array,
    pooled: Array,
    places: Array,
    window: tuple[int, ...],
    alpha: float,
    k: float,
    per_column: int,
    relu_first: bool,
) -> None:
    """Rows N×H×W×C, N×H'×W'×C and N×H'×W'×C."""
    width, channels = images.shape[2:]
    pooled_height, pooled_width = pooled.shape[1:3]
    half = len(window) // 2
    slot = channels // per_column * (per_column + half)
    odd = (width + 1) // 2 * slot
    stretch = pooled_width * slot
    spread = np.zeros(half + width * slot + half, np.float32)
    normalized = np.empty(width * slot, np.float32)
    # Allocations of their own: only then LLVM knows that what a loop reads and writes is apart.
    # `across` is of the last three rows; row h is at h % 3.
    across = np.empty((3, stretch), np.float32)
    across_places = np.empty((3, stretch), np.float32)
    largest = np.empty(stretch, np.float32)
    largest_places = np.empty(stretch, np.float32)
    for image in range(len(images)):
        for h in range(2 * pooled_height + 1):
            _spread(images[image, h], slot, odd, per_column, half, relu_first, spread[half:])
            _normalize(spread, window, alpha, k, normalized)
            _pool_across(normalized, slot, odd, across[h % 3], across_places[h % 3])
            if h < 2 or h % 2:
                continue
            first, second, third = (h - 2) % 3, (h - 1) % 3, h % 3
            _pool_down(
                (across[first], across[second], across[third]),
                (across_places[first], across_places[second], across_places[third]),
                largest,
                largest_places,
            )
            row = h // 2 - 1
            _gather(largest, 2 * slot, slot, per_column, half, pooled[image, row])
            _gather(largest_places, 2 * slot, slot, per_column, half, places[image, row])


@_compiled
def _backward(
    gradients: Array,
    images: Array,
    places: Array,
    found: Array,
    window: tuple[int, ...],
    alpha: float,
    k: float,
    per_column: int,
    relu_first: bool,
) -> None:
    """Rows N×H'×W'×C, N×H×W×C, N×H'×W'×C and N×H×W×C.

    With ReLU first nothing else is to be done for it: a place whose ReLU is 0 is NOWHERE, and of
    the gradient by way of the denominators x is a factor.
    """
    height, width, channels = images.shape[1:]
    pooled_height, pooled_width = gradients.shape[1:3]
    half = len(window) // 2
    slot = channels // per_column * (per_column + half)
    odd = (width + 1) // 2 * slot
    stretch = pooled_width * slot
    spread = np.zeros(half + width * slot + half, np.float32)
    shared = np.zeros(half + width * slot + half, np.float32)
    unpooled = np.empty(width * slot, np.float32)
    direct = np.empty(width * slot, np.float32)
    # Of the last two pooled rows, the one of row h at h % 2; in front and behind a slot of nothing.
    pooled = np.zeros((2, slot + stretch + slot), np.float32)
    pooled_places = np.full((2, slot + stretch + slot), _NOWHERE, np.float32)
    for image in range(len(images)):
        for h in range(height):
            row, kernel_row = divmod(h, 2)
            unpooled[:] = 0
            if row < pooled_height:
                now = row % 2
                if kernel_row == 0:
                    target, target_places = pooled[now, slot:], pooled_places[now, slot:]
                    _spread(gradients[image, row], 2 * slot, slot, per_column, half, False, target)
                    _spread(
                        places[image, row], 2 * slot, slot, per_column, half, False, target_places
                    )
                _unpool(pooled[now], pooled_places[now], kernel_row, slot, odd, unpooled)
            if kernel_row == 0 and 0 < row <= pooled_height:
                before = (row - 1) % 2
                _unpool(pooled[before], pooled_places[before], 2, slot, odd, unpooled)
            _spread(images[image, h], slot, odd, per_column, half, relu_first, spread[half:])
            _differentiate(spread, unpooled, window, alpha, k, direct, shared)
            _subtract_shared(spread, shared, window, alpha, direct)
            _gather(direct, slot, odd, per_column, half, found[image, h])


@_compiled
def _spread(
    row: Array, even: int, odd: int, per_column: int, half: int, relu: bool, spread: Array
) -> None:
    """A row W×C into the layout above, or one in the order of its pixels.

    Pixels 0, 2, 4, … go to 0, even, 2 · even, … and pixels 1, 3, … to odd, odd + even, ….
    """
    width, channels = row.shape
    for pixel in range(width):
        start = pixel // 2 * even + pixel % 2 * odd
        for first in range(0, channels, per_column):
            source = row[pixel, first : first + per_column]
            target = spread[start : start + per_column]
            for channel in range(per_column):
                number = _widened(source[channel])
                target[channel] = _ZERO if relu and number < _ZERO else number
            start += per_column + half


@_compiled
def _gather(spread: Array, even: int, odd: int, per_column: int, half: int, row: Array) -> None:
    """The way back from `_spread`, without the ReLU."""
    width, channels = row.shape
    for pixel in range(width):
        start = pixel // 2 * even + pixel % 2 * odd
        for first in range(0, channels, per_column):
            source = spread[start : start + per_column]
            target = row[pixel, first : first + per_column]
            for channel in range(per_column):
                target[channel] = _narrowed(source[channel], target[channel])
            start += per_column + half


@_compiled
def _normalize(
    spread: Array, window: tuple[int, ...], alpha: float, k: float, normalized: Array
) -> None:
    """x · s^-0.75, where s = k + alpha · Σ x² over the window, and s^-0.75 = s^-0.5 · √(s^-0.5)."""
    half = len(window) // 2
    for i in range(len(normalized)):
        squares = _ZERO
        for neighbour in range(len(window)):
            squares += spread[i + neighbour] * spread[i + neighbour]
        root = _ONE / np.sqrt(k + alpha * squares)
        normalized[i] = spread[i + half] * (root * np.sqrt(root))


@_compiled
def _wins(challenger: float, best: float) -> bool:
    """torch's rule: of equals the first is the maximum, and NaN is larger than any number."""
    return (challenger > best) | (challenger != challenger)


@_compiled
def _pool_across(normalized: Array, slot: int, odd: int, largest: Array, places: Array) -> None:
    """The largest of pixels 2i, 2i + 1 and 2i + 2, and its place 0, 1 or 2."""
    stretch = len(largest)
    first, second = normalized[:stretch], normalized[odd : odd + stretch]
    third = normalized[slot : slot + stretch]
    for i in range(stretch):
        best, place = first[i], np.float32(0)
        if _wins(second[i], best):
            best, place = second[i], np.float32(1)
        if _wins(third[i], best):
            best, place = third[i], np.float32(2)
        largest[i], places[i] = best, place


@_compiled
def _pool_down(
    rows: tuple[Array, Array, Array],
    row_places: tuple[Array, Array, Array],
    largest: Array,
    places: Array,
) -> None:
    """The largest of three rows of `_pool_across`, its place in the window, and ReLU."""
    for i in range(len(largest)):
        best, place = rows[0][i], row_places[0][i]
        if _wins(rows[1][i], best):
            best, place = rows[1][i], row_places[1][i] + np.float32(3)
        if _wins(rows[2][i], best):
            best, place = rows[2][i], row_places[2][i] + np.float32(6)
        is_dead = best <= _ZERO
        largest[i] = _ZERO if is_dead else best
        places[i] = _NOWHERE if is_dead else place


@_compiled
def _unpool(
    pooled: Array, places: Array, kernel_row: int, slot: int, odd: int, unpooled: Array
) -> None:
    """Adds the gradients of pooled elements to those of the pixels of one row they came from.

    An even pixel is the first of one window and the third of the one before, an odd one the second.
    """
    stretch = len(pooled) - 2 * slot
    first = np.float32(3 * kernel_row)
    second, third = first + np.float32(1), first + np.float32(2)
    even_pixels, odd_pixels = unpooled[: stretch + slot], unpooled[odd : odd + stretch]
    here, place_here = pooled[slot:], places[slot:]
    for i in range(stretch + slot):
        from_here = here[i] if place_here[i] == first else _ZERO
        from_before = pooled[i] if places[i] == third else _ZERO
        even_pixels[i] += from_here + from_before
    for i in range(stretch):
        odd_pixels[i] += here[i] if place_here[i] == second else _ZERO


@_compiled
def _differentiate(
    spread: Array,
    unpooled: Array,
    window: tuple[int, ...],
    alpha: float,
    k: float,
    direct: Array,
    shared: Array,
) -> None:
    """g · s^-0.75, what a gradient is with s held fixed; and g · x · s^-1.75, which all of the
    window share, half zeros in front of it."""
    half = len(window) // 2
    for i in range(len(direct)):
        squares = _ZERO
        for neighbour in range(len(window)):
            squares += spread[i + neighbour] * spread[i + neighbour]
        root = _ONE / np.sqrt(k + alpha * squares)
        direct[i] = unpooled[i] * (root * np.sqrt(root))
        shared[half + i] = direct[i] * spread[half + i] * (root * root)


@_compiled
def _subtract_shared(
    spread: Array, shared: Array, window: tuple[int, ...], alpha: float, direct: Array
) -> None:
    """direct - 2 · 0.75 · alpha · x · Σ shared: with an odd window, i is in the windows of those
    that are in the window of i."""
    half = len(window) // 2
    factor = np.float32(1.5) * alpha
    for i in range(len(direct)):
        total = _ZERO
        for neighbour in range(len(window)):
            total += shared[i + neighbour]
        direct[i] -= factor * spread[half + i] * total
