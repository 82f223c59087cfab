"""Copies windows out of images that lie in memory as pixels or as planes.

The C code in `c/copying.c` does it without the interpreter lock. Where it could not be built, this
module does the same, more slowly.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.compiled import address, is_compiled, library

_Offsets = npt.NDArray[np.int64]


class MappedFile:
    """A whole file in memory, to copy windows from."""

    def __init__(self, file: int) -> None:
        """Map the open `file`; raises `OSError`, or `ValueError` if it is empty."""
        self._map = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        self.num_bytes = len(self._map)
        array = np.frombuffer(self._map, np.uint8)
        self.address = int(array.__array_interface__["data"][0])


def copy_windows(
    addresses: npt.NDArray[np.uint64],
    size: tuple[int, int],
    tops: _Offsets,
    lefts: _Offsets,
    out: npt.NDArray[np.uint8],
    flips: npt.NDArray[np.bool_] | None = None,
    *,
    streams: bool = False,
) -> int | None:
    """Copy a window out of each of N images of `size`, whose first bytes are at `addresses`.

    The windows have the size of `out`: uint8 N×H×W×3 for pixels, or N×(3H/2)×W for planes as in
    `yuv`, whose windows lie at even places. Those of `flips` are mirrored left to right, of pixels
    only. `streams` writes past the processor's caches: for what does not fit in. The caller ensures
    that the windows lie inside the images, and these inside their files. Returns None, or the
    number of the first image that cannot be read any more because its file was cut or its disk
    fails (uncompiled code dies of it).
    """
    assert flips is None or (out.ndim == 4 and not streams)
    count = len(out)
    offsets, pieces = _pieces(size, tops, lefts, out.shape[1:])
    starts = addresses[:, None] + offsets.astype(np.uint64)
    if is_compiled():
        failed = library().copy_windows(
            address(starts, np.uint64, count, len(pieces)),
            count,
            address(pieces, np.int32, len(pieces), 3),
            len(pieces),
            None if flips is None else address(flips, np.bool_, count),
            streams,
            address(out, np.uint8, *out.shape),
        )
        return None if failed == count else failed
    assert out.flags.c_contiguous
    for image, of_image in enumerate(starts.tolist()):
        flat, begin = out[image].reshape(-1), 0
        for start, (row_bytes, rows, columns) in zip(of_image, pieces.tolist(), strict=True):
            memory = (ctypes.c_uint8 * ((rows - 1) * row_bytes + columns)).from_address(start)
            piece = np.lib.stride_tricks.as_strided(
                np.ctypeslib.as_array(memory), (rows, columns), (row_bytes, 1)
            )
            flat[begin : begin + piece.size] = piece.ravel()
            begin += piece.size
        if flips is not None and flips[image]:
            out[image] = out[image, :, ::-1].copy()
    return None


def _pieces(
    size: tuple[int, int], tops: _Offsets, lefts: _Offsets, shape: tuple[int, ...]
) -> tuple[_Offsets, npt.NDArray[np.int32]]:
    """Where in the images the P pieces of N windows begin, N×P; and the pieces, P×3.

    A piece is `Piece` in `c/pixels.h`: bytes from row to row, rows, and bytes of a row.
    """
    height, width = size
    if len(shape) == 3:
        row_bytes, rows, columns = 3 * width, shape[0], 3 * shape[1]
        offsets = (tops * row_bytes + 3 * lefts)[:, None]
        return offsets, np.array([[row_bytes, rows, columns]], np.int32)
    rows, columns = 2 * shape[0] // 3, shape[1]
    luma, area = tops * width + lefts, height * width
    chroma = area + tops // 2 * (width // 2) + lefts // 2
    of_chroma = [width // 2, rows // 2, columns // 2]
    return (
        np.stack([luma, chroma, chroma + area // 4], axis=1),
        np.array([[width, rows, columns], of_chroma, of_chroma], np.int32),
    )
