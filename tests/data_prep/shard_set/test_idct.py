"""The compiled inverse DCT against the algorithm's definition, and against libjpeg-turbo's."""

from __future__ import annotations

import ctypes
import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from data_prep.shard_set.compiled import is_compiled, library
from data_prep.shard_set.pixels import Pixels

pytestmark = pytest.mark.skipif(not is_compiled(), reason="the compiled code was not built")

Blocks = npt.NDArray[np.int16]
"""N×64, rows of 8."""

ZIGZAG = sorted(
    range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)
)
"""The place in a block of each coefficient of a file: ITU-T T.81, figure 5."""


def transformed(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One pass of jidctint.c over the first axis, scaled by 8192."""
    z2, z3 = x[2], x[6]
    z1 = (z2 + z3) * 4433
    c, d = z1 - z3 * 15137, z1 + z2 * 6270
    a, b = (x[0] + x[4]) * 8192, (x[0] - x[4]) * 8192
    even = a + d, b + c, b - c, a - d
    p, q, r, s = x[7], x[5], x[3], x[1]
    z1, z2, z3, z4 = p + s, q + r, p + r, q + s
    z5 = (z3 + z4) * 9633
    z1, z2, z3, z4 = z1 * -7373, z2 * -20995, z3 * -16069 + z5, z4 * -3196 + z5
    odd = s * 12299 + z1 + z4, r * 25172 + z2 + z3, q * 16819 + z2 + z4, p * 2446 + z1 + z3
    pairs = list(zip(even, odd, strict=True))
    return np.stack([*(e + o for e, o in pairs), *(e - o for e, o in reversed(pairs))])


def descaled(x: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    return (x + (1 << (bits - 1))) >> bits


def samples_of(blocks: Blocks, quant: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """N×8×8, neither moved up by 128 nor clipped to 8 bits."""
    dequantized = (blocks.astype(np.int64) * quant).reshape(-1, 8, 8)
    columns = descaled(transformed(dequantized.transpose(1, 2, 0)), 11)
    return descaled(transformed(columns.transpose(1, 0, 2)), 18).transpose(2, 1, 0)


def lasts_of(blocks: Blocks) -> Pixels:
    is_there = blocks[:, ZIGZAG] != 0
    return np.where(is_there.any(1), 63 - is_there[:, ::-1].argmax(1), 0).astype(np.uint8)


def inverse_dct(blocks: Blocks, quant: npt.NDArray[np.uint16]) -> Pixels | None:
    """N×8×8."""
    count = len(blocks)
    blocks, lasts = np.ascontiguousarray(blocks), lasts_of(blocks)
    out = np.full((8, count * 8 + 24), 77, np.uint8)
    is_done = library().inverse_dct(
        ctypes.c_void_p(blocks.ctypes.data),
        ctypes.c_void_p(lasts.ctypes.data),
        count,
        ctypes.c_void_p(quant.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_size_t(out.shape[1]),
    )
    assert (out[:, -24:] == 77).all()
    rows = out[:, :-24].reshape(8, count, 8)
    return rows.transpose(1, 0, 2) if is_done else None


def dct(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of N×8×8 the coefficients, N×64."""
    k, x = np.mgrid[:8, :8]
    basis = np.cos((2 * x + 1) * k * np.pi / 16) / 2
    basis[0] /= np.sqrt(2)
    coefficients: npt.NDArray[np.float64] = (basis @ samples @ basis.T).reshape(-1, 64)
    return coefficients


def quality_table(quality: int) -> npt.NDArray[np.uint16]:
    """Of luma, as libjpeg writes it."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        assert isinstance(image, JpegImageFile)
        return np.array(image.quantization[0], np.uint16)


PATTERNS = ("noise", "binary noise", "checkerboard", "stripes", "edges", "smooth")


def patterns(kind: str, count: int, seed: int) -> npt.NDArray[np.float64]:
    """N×8×8 samples between -128 and 127: what is hardest on numbers, and what is usual."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8]
    sizes, places = rng.integers(1, 4, (2, count, 1, 1)), rng.integers(0, 14, (count, 1, 1))
    is_high = {
        "binary noise": rng.integers(0, 2, (count, 8, 8)),
        "checkerboard": (x // sizes[0] + y // sizes[1]) % 2,
        "stripes": (x + places) % 3 // 2,
        "edges": x + y > places,
    }
    samples: npt.NDArray[np.float64]
    if kind == "noise":
        samples = rng.uniform(-128, 127, (count, 8, 8))
    elif kind == "smooth":
        samples = (x + y) * rng.uniform(-9, 9, (count, 1, 1))
    else:
        samples = np.where(is_high[kind], 127.0, -128.0)
    return samples


@pytest.mark.parametrize("kind", PATTERNS)
def test_what_an_encoder_writes_is_transformed(kind: str) -> None:
    for quality in range(1, 101):
        quant = quality_table(quality)
        blocks = np.round(dct(patterns(kind, 37, quality)) / quant).astype(np.int16)
        found = inverse_dct(blocks, quant)
        assert found is not None, quality
        expected = np.clip(samples_of(blocks, quant) + 128, 0, 255)
        assert np.array_equal(found, expected)
