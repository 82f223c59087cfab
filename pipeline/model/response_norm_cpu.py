"""Response norm, ReLU and max-pool in one pass over channels-last rows, compiled by numba.

A kernel takes one row of an image after the other. It spreads the row out in float32, with zeros
between the columns of channels, so that a window of channels never meets another column:

    half zeros, [pixel 0: column 0, half zeros, column 1, half zeros], [pixel 1: …], …

Each step is then a long loop that LLVM turns into vector instructions. `slot` is the length of one
pixel. Such rows stay in the cache; memory sees each tensor once.

Images are shared among threads, and no image's result depends on which thread it was. The threads
are Python's. numba's own can be those of torch's OpenMP, which spares 3 milliseconds a call behind
a kernel of torch, whose threads go on spinning; but compiling for them takes five times as long.

Longer than 250 lines: all kernels work on the one layout that is described here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.model.response_norm import Norm

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

_PIECES_PER_THREAD = 4
"""So that the threads end together where another process has disturbed one of them."""

_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
"""numba has neither of the 16-bit floats: it sees their bits."""

_ZERO, _ONE = np.float32(0), np.float32(1)

_NOWHERE = np.float32(9)
"""The place of a pooled element that the ReLU has set to 0: no gradient goes back from it."""


def forward(x: torch.Tensor, pooled: torch.Tensor, places: torch.Tensor, norm: Norm) -> None:
    """Fill what is pooled, and its places, as `_fused` of `pipeline.model.response_norm`."""
    _share(_forward, norm, x, pooled, places)


def backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    places: torch.Tensor,
    found: torch.Tensor,
    norm: Norm,
) -> None:
    """Fill the gradient of x with what follows from that of the pooled elements."""
    _share(_backward, norm, gradient, x, places, found)


def _rows(maps: torch.Tensor) -> Array:
    """N×C×H×W, channels-last, as N×H×W×C, of the types that numba has."""
    rows = maps.detach().permute(0, 2, 3, 1)
    return rows.view(_BITS.get(rows.dtype, rows.dtype)).numpy()


class _Norm(NamedTuple):
    """A `Norm` as the kernels take it."""

    window: tuple[int, ...]
    """As long as the window, which is part of its type: the compiler unrolls the loop over it."""
    alpha: np.float32
    k: np.float32
    per_column: int
    relu_first: bool


def _share(kernel: Callable[..., None], norm: Norm, *tensors: torch.Tensor) -> None:
    """Calls the kernel for all images, with as many threads as torch has for its own kernels."""
    arrays = [_rows(tensor) for tensor in tensors]
    typed = _Norm(
        window=(0,) * norm.size,
        alpha=np.float32(norm.alpha),
        k=np.float32(norm.k),
        per_column=arrays[0].shape[-1] // norm.num_columns,
        relu_first=norm.relu_first,
    )
    count, num_threads = len(arrays[0]), torch.get_num_threads()
    if num_threads == 1 or count < 2:
        kernel(*arrays, typed)
        return
    num_pieces = min(count, num_threads * _PIECES_PER_THREAD)
    bounds = [piece * count // num_pieces for piece in range(num_pieces + 1)]

    def call(first: int, end: int) -> None:
        kernel(*(array[first:end] for array in arrays), typed)

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
    """An element of a tensor, as `_rows` shows it, as float32."""

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
def _forward(images: Array, pooled: Array, places: Array, norm: _Norm) -> None:
    """Rows N×H×W×C, N×H'×W'×C and N×H'×W'×C."""
    width, channels = images.shape[2:]
    pooled_height, pooled_width = pooled.shape[1:3]
    half = len(norm.window) // 2
    slot = channels // norm.per_column * (norm.per_column + half)
    # Allocations of their own: only then LLVM knows that what a loop reads and writes is apart.
    spread = np.zeros(half + width * slot + half, np.float32)
    normalized = np.empty((3, width * slot), np.float32)
    largest = np.empty(pooled_width * slot, np.float32)
    largest_places = np.empty(pooled_width * slot, np.float32)
    for image in range(len(images)):
        for row in range(pooled_height):
            normalized[0] = normalized[2]  # which is in both windows
            for kernel_row in range(1 if row > 0 else 0, 3):
                _spread(images[image, 2 * row + kernel_row], norm, norm.relu_first, spread[half:])
                _normalize(spread, norm, normalized[kernel_row])
            _pool(normalized, slot, largest, largest_places)
            _gather(largest, norm, pooled[image, row])
            _gather(largest_places, norm, places[image, row])


@_compiled
def _backward(gradients: Array, images: Array, places: Array, found: Array, norm: _Norm) -> None:
    """Rows N×H'×W'×C, N×H×W×C, N×H'×W'×C and N×H×W×C.

    With ReLU first nothing else is to be done for it: a place whose ReLU is 0 is NOWHERE, and of
    the gradient by way of the denominators x is a factor.
    """
    height, width, channels = images.shape[1:]
    pooled_height, pooled_width = gradients.shape[1:3]
    half = len(norm.window) // 2
    slot = channels // norm.per_column * (norm.per_column + half)
    spread = np.zeros(half + width * slot + half, np.float32)
    shared = np.zeros(half + width * slot + half, np.float32)
    direct = np.empty(width * slot, np.float32)
    # Of the last two pooled rows, row r at r % 2, and what each gives to the row of the image.
    pooled = np.zeros((2, pooled_width * slot), np.float32)
    pooled_places = np.zeros((2, pooled_width * slot), np.float32)
    unpooled = np.empty((2, width * slot), np.float32)
    for image in range(len(images)):
        for h in range(height):
            unpooled[:] = 0
            for above in range(2):
                row, kernel_row = h // 2 - above, h % 2 + 2 * above
                if row < 0 or row >= pooled_height or kernel_row > 2:
                    continue
                if kernel_row == 0:
                    _spread(gradients[image, row], norm, False, pooled[row % 2])
                    _spread(places[image, row], norm, False, pooled_places[row % 2])
                _unpool(pooled[row % 2], pooled_places[row % 2], kernel_row, slot, unpooled[above])
            _spread(images[image, h], norm, norm.relu_first, spread[half:])
            _differentiate(spread, unpooled, norm, direct, shared)
            _subtract_shared(spread, shared, norm, direct)
            _gather(direct, norm, found[image, h])


@_compiled
def _spread(row: Array, norm: _Norm, relu: bool, spread: Array) -> None:
    """A row W×C into the layout above."""
    width, channels = row.shape
    start = 0
    for pixel in range(width):
        for first in range(0, channels, norm.per_column):
            source = row[pixel, first : first + norm.per_column]
            target = spread[start : start + norm.per_column]
            for channel in range(norm.per_column):
                number = _widened(source[channel])
                target[channel] = _ZERO if relu and number < _ZERO else number
            start += norm.per_column + len(norm.window) // 2


@_compiled
def _gather(spread: Array, norm: _Norm, row: Array) -> None:
    """The way back from `_spread`, without the ReLU."""
    width, channels = row.shape
    start = 0
    for pixel in range(width):
        for first in range(0, channels, norm.per_column):
            source = spread[start : start + norm.per_column]
            target = row[pixel, first : first + norm.per_column]
            for channel in range(norm.per_column):
                target[channel] = _narrowed(source[channel], target[channel])
            start += norm.per_column + len(norm.window) // 2


@_compiled
def _root(spread: Array, first: int, norm: _Norm) -> Any:
    """s^-0.5, where s = k + alpha · Σ x² over the window that begins at `first`."""
    squares = _ZERO
    for neighbour in range(len(norm.window)):
        squares += spread[first + neighbour] * spread[first + neighbour]
    return _ONE / np.sqrt(norm.k + norm.alpha * squares)


@_compiled
def _normalize(spread: Array, norm: _Norm, normalized: Array) -> None:
    """x · s^-0.75, which is x · s^-0.5 · √(s^-0.5)."""
    half = len(norm.window) // 2
    for i in range(len(normalized)):
        root = _root(spread, i, norm)
        normalized[i] = spread[i + half] * (root * np.sqrt(root))


@_compiled
def _pool(rows: Array, slot: int, largest: Array, places: Array) -> None:
    """The largest in windows of three rows, its place 0 to 8, and ReLU.

    torch's rule: of equals the first is the maximum, and NaN is larger than any number.
    """
    largest[:] = -np.inf
    for pixel in range(len(largest) // slot):
        best, best_places = largest[pixel * slot :], places[pixel * slot :]
        for kernel_row in range(3):
            for kernel_column in range(3):
                challengers = rows[kernel_row, (2 * pixel + kernel_column) * slot :]
                place = np.float32(3 * kernel_row + kernel_column)
                for i in range(slot):
                    wins = (challengers[i] > best[i]) | (challengers[i] != challengers[i])
                    best[i] = challengers[i] if wins else best[i]
                    best_places[i] = place if wins else best_places[i]
    for i in range(len(largest)):
        is_dead = largest[i] <= _ZERO
        largest[i] = _ZERO if is_dead else largest[i]
        places[i] = _NOWHERE if is_dead else places[i]


@_compiled
def _unpool(pooled: Array, places: Array, kernel_row: int, slot: int, unpooled: Array) -> None:
    """Adds the gradients of pooled elements to those of the pixels of one row they came from."""
    for pixel in range(len(pooled) // slot):
        for kernel_column in range(3):
            place = np.float32(3 * kernel_row + kernel_column)
            target = unpooled[(2 * pixel + kernel_column) * slot :]
            for i in range(slot):
                at = pixel * slot + i
                target[i] += pooled[at] if places[at] == place else _ZERO


@_compiled
def _differentiate(
    spread: Array, unpooled: Array, norm: _Norm, direct: Array, shared: Array
) -> None:
    """g · s^-0.75, what a gradient is with s held fixed; and g · x · s^-1.75, which all of the
    window share, half zeros in front of it."""
    half = len(norm.window) // 2
    for i in range(len(direct)):
        root = _root(spread, i, norm)
        direct[i] = (unpooled[0, i] + unpooled[1, i]) * (root * np.sqrt(root))
        shared[half + i] = direct[i] * spread[half + i] * (root * root)


@_compiled
def _subtract_shared(spread: Array, shared: Array, norm: _Norm, direct: Array) -> None:
    """direct - 2 · 0.75 · alpha · x · Σ shared: with an odd window, i is in the windows of those
    that are in the window of i."""
    half = len(norm.window) // 2
    factor = np.float32(1.5) * norm.alpha
    for i in range(len(direct)):
        total = _ZERO
        for neighbour in range(len(norm.window)):
            total += shared[i + neighbour]
        direct[i] -= factor * spread[half + i] * total
