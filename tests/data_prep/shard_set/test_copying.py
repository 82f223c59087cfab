"""Windows copied out of memory, of pixels and of planes, against numpy's slices."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.copying import MappedFile, copy_windows
from data_prep.shard_set.yuv import cut_yuv

Images = npt.NDArray[np.uint8]

EDGE = 7
"""A value that is written around what is copied."""


def copied(
    images: Images,
    size: tuple[int, int],
    corners: list[tuple[int, int]],
    shape: tuple[int, ...],
    flips: list[bool] | None = None,
    *,
    streams: bool = False,
    shift: int = 0,
) -> Images:
    """The windows of `shape` at `corners`, one an image, written `shift` bytes behind a line."""
    num_bytes = len(corners) * int(np.prod(shape))
    room = np.full(num_bytes + 256, EDGE, np.uint8)
    begin = -room.ctypes.data % 64 + 64 + shift
    out = room[begin : begin + num_bytes].reshape(len(corners), *shape)
    image_bytes = int(np.prod(images.shape[1:]))
    addresses = images.ctypes.data + np.arange(len(images), dtype=np.uint64) * image_bytes
    tops, lefts = np.array(corners, np.int64).reshape(-1, 2).T
    mirrored = None if flips is None else np.array(flips)
    assert copy_windows(addresses, size, tops, lefts, out, mirrored, streams=streams) is None
    outside = np.delete(room, np.s_[begin : begin + num_bytes])
    assert np.all(outside == EDGE)
    return out


@st.composite
def windows(draw: st.DrawFn, step: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Sizes of an image and of a window in it, which are multiples of `step`, and a seed."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 400 // step))
    size = draw(st.integers(1, height)), draw(st.integers(1, width))
    sides = (height * step, width * step), (size[0] * step, size[1] * step)
    return *sides, draw(st.integers(0, 99))


@pytest.mark.parametrize("streams", [False, True])
@given(of=windows(1), shift=st.integers(0, 63), count=st.integers(0, 3))
def test_any_window_of_pixels(
    of: tuple[tuple[int, int], tuple[int, int], int], shift: int, count: int, streams: bool
) -> None:
    (height, width), (rows, columns), seed = of
    dice = np.random.default_rng(seed)
    images = dice.integers(256, size=(count + 1, height, width, 3)).astype(np.uint8)[:count]
    corners = [
        (int(dice.integers(height - rows + 1)), int(dice.integers(width - columns + 1)))
        for _ in range(count)
    ]
    shape = (rows, columns, 3)
    found = copied(images, (height, width), corners, shape, streams=streams, shift=shift)
    for image, (top, left), window in zip(images, corners, found, strict=True):
        expected = image[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("streams", [False, True])
@given(of=windows(2), shift=st.integers(0, 63))
def test_any_window_of_planes_is_that_of_the_file(
    of: tuple[tuple[int, int], tuple[int, int], int], shift: int, streams: bool
) -> None:
    (height, width), (rows, columns), seed = of
    dice = np.random.default_rng(seed)
    images = dice.integers(256, size=(2, 3 * height // 2, width)).astype(np.uint8)
    corners = [
        (
            2 * int(dice.integers((height - rows) // 2 + 1)),
            2 * int(dice.integers((width - columns) // 2 + 1)),
        )
        for _ in images
    ]
    shape = (3 * rows // 2, columns)
    found = copied(images, (height, width), corners, shape, streams=streams, shift=shift)
    expected = np.empty((2, *shape), np.uint8)
    boxes = np.array([(*corner, rows, columns) for corner in corners], np.int32)
    contents = []
    for image in images:
        buffer = io.BytesIO()
        np.save(buffer, image)
        contents.append(buffer.getvalue())
    assert cut_yuv(contents, boxes, expected) is None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("way")
def test_both_ways_copy_and_mirror_pixels() -> None:
    images = np.random.default_rng(0).integers(256, size=(4, 20, 30, 3)).astype(np.uint8)
    corners, flips = [(0, 22), (13, 0), (5, 3), (1, 4)], [True, False, True, True]
    windows = [
        image[top : top + 7, left : left + 8]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    found = copied(images, (20, 30), corners, (7, 8, 3))
    np.testing.assert_array_equal(found, windows)
    mirrored = [
        window[:, ::-1] if flip else window for window, flip in zip(windows, flips, strict=True)
    ]
    found = copied(images, (20, 30), corners, (7, 8, 3), flips)
    np.testing.assert_array_equal(found, mirrored)


@pytest.mark.usefixtures("way")
def test_both_ways_copy_planes() -> None:
    image = np.arange(9 * 8, dtype=np.uint8).reshape(1, 9, 8)
    (found,) = copied(image, (6, 8), [(2, 4)], (3, 2))
    luma, cb, cr = image[0, :6], image[0, 6:].reshape(2, 3, 4)[0], image[0, 6:].reshape(2, 3, 4)[1]
    assert found.tolist() == [*luma[2:4, 4:6].tolist(), [cb[1, 2], cr[1, 2]]]


@pytest.mark.usefixtures("way")
def test_a_file_is_mapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "pixels"
    path.write_bytes(b"header" + bytes(range(12)))
    with path.open("rb") as file:
        mapped = MappedFile(file.fileno())
    assert mapped.num_bytes == 18
    out, first = np.empty((1, 1, 2, 3), np.uint8), np.zeros(1, np.int64)
    addresses = np.array([mapped.address + 6], np.uint64)
    assert copy_windows(addresses, (2, 2), first + 1, first, out) is None
    assert out.ravel().tolist() == list(range(6, 12))


CUT = """
import faulthandler, os, sys
import numpy as np
from data_prep.shard_set.copying import MappedFile, copy_windows
faulthandler.enable()
path, planes, streams = sys.argv[1], sys.argv[2] == "planes", sys.argv[3] == "streams"
shape = (384, 256) if planes else (256, 256, 3)
size = int(np.prod(shape))
with open(path, "wb") as file:
    file.write(bytes(range(256)) * (4 * size // 256))
file = os.open(path, os.O_RDONLY)
mapped = MappedFile(file)
addresses = mapped.address + np.arange(4, dtype=np.uint64) * np.uint64(size)
zeros, room = np.zeros(4, np.int64), np.empty(4 * size + 1, np.uint8)
out = room[1:].reshape(4, *shape)
copy = lambda n: copy_windows(
    addresses[:n], (256, 256), zeros[:n], zeros[:n], out[:n], streams=streams
)
assert copy(4) is None
whole = out[:2].copy()
os.truncate(path, 2 * size + size // 2)
for _ in range(3):
    out[:] = 0
    print(copy(4))
    assert np.array_equal(out[:2], whole)
print(copy(2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "planes"])
@pytest.mark.parametrize("how", ["copies", "streams"])
def test_a_file_that_is_cut_under_the_copy_ends_the_copy_and_nothing_else(
    tmp_path: Path, kind: str, how: str
) -> None:
    """In a process of its own, which a failure would end; Python's own handler is there too."""
    if not is_compiled():
        pytest.skip("data_prep.shard_set._pixels was not built")
    command = [sys.executable, "-c", CUT, str(tmp_path / "pixels"), kind, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "2", "2", "None"]), done.stderr


OWNER = """
import faulthandler, mmap, os, sys
import numpy as np
from data_prep.shard_set.copying import copy_windows
copied, zeros = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64)
addresses = np.array([copied.ctypes.data], np.uint64)
copy = lambda: copy_windows(addresses, (8, 8), zeros, zeros, np.empty_like(copied))
copy()
faulthandler.enable()  # it gives way to our handler when it has reported
copy()
with open(sys.argv[1], "w+b") as file:
    file.truncate(mmap.PAGESIZE)
    cut = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
cut[0]
"""


@pytest.mark.slow
def test_another_error_of_the_bus_is_reported_once_and_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "cut")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == 1
