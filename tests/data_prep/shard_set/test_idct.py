"""The compiled inverse DCT against the algorithm's definition, and against libjpeg-turbo's."""

from __future__ import annotations

import ctypes
import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set.compiled import address
from data_prep.shard_set.pixels import Pixels
from tests.data_prep.shard_set.jpeg_writer import (
    GRAY,
    PAINTINGS,
    ZIGZAG,
    Form,
    paint,
    quantisation,
    to_blocks,
    write_blocks,
)

Blocks = npt.NDArray[np.int16]
"""N×64, rows of 8."""
Table = npt.NDArray[np.uint16]
"""64 quantisation steps, rows of 8."""
Samples = npt.NDArray[np.int64]
"""N×8×8, neither moved up by 128 nor clipped to 8 bits."""


def transformed(x: Samples) -> Samples:
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


def descaled(x: Samples, bits: int) -> Samples:
    return (x + (1 << (bits - 1))) >> bits


def passes(blocks: Blocks, quant: Table) -> tuple[Samples, Samples, Samples]:
    """Dequantized coefficients, what the pass over the columns gives, and samples."""
    dequantized = blocks.astype(np.int64).reshape(-1, 8, 8) * quant.astype(np.int64).reshape(8, 8)
    columns = descaled(transformed(dequantized.transpose(1, 2, 0)), 11)
    samples = descaled(transformed(columns.transpose(1, 0, 2)), 18)
    return dequantized, columns, samples.transpose(2, 1, 0)


def expected_of(blocks: Blocks, quant: Table) -> Pixels:
    return np.clip(passes(blocks, quant)[2] + 128, 0, 255).astype(np.uint8)


def inverse_dct(steps: ctypes.CDLL, blocks: Blocks, quant: Table) -> Pixels | None:
    """N×8×8."""
    count, blocks = len(blocks), np.ascontiguousarray(blocks)
    is_there = blocks[:, ZIGZAG] != 0
    lasts = np.where(is_there.any(1), 63 - is_there[:, ::-1].argmax(1), 0).astype(np.uint8)
    out = np.full((8, count * 8 + 24), 77, np.uint8)
    is_done = steps.inverse_dct(
        address(blocks, np.int16, count, 64),
        address(lasts, np.uint8, count),
        count,
        address(quant, np.uint16, 64),
        address(out, np.uint8, 8, count * 8 + 24),
        ctypes.c_size_t(out.shape[1]),
    )
    assert (out[:, -24:] == 77).all()  # nothing beside the blocks
    return out[:, :-24].reshape(8, count, 8).transpose(1, 0, 2) if is_done else None


def in_rows(zigzag: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    rows = np.empty_like(zigzag)
    rows[..., ZIGZAG] = zigzag
    return rows


def picture(kind: str, height: int, width: int) -> Pixels:
    """Black and white is hardest on numbers."""
    rng = np.random.default_rng(height + width)
    y, x = np.mgrid[:height, :width]
    is_white = {
        "binary noise": rng.integers(0, 2, (height, width)),
        "stripes": (x + y // 8) % 3 // 2,
        "steps": x // 5 % 2 == y // 3 % 2,
    }
    if kind not in is_white:
        return paint(kind, height, width)
    return np.repeat(255 * is_white[kind][:, :, np.newaxis], 3, axis=2).astype(np.uint8)


KINDS = (*PAINTINGS, "binary noise", "stripes", "steps")


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_encoder_writes_is_transformed(steps: ctypes.CDLL, kind: str) -> None:
    """At every quality, whatever the image."""
    image = picture(kind, 64, 88)
    for quality in range(1, 101):
        form = Form(samplings=GRAY, quality=quality)
        blocks = in_rows(to_blocks(image, form)[0].reshape(-1, 64)).astype(np.int16)
        quant = in_rows(quantisation(quality)).astype(np.uint16)
        found = inverse_dct(steps, blocks, quant)
        assert found is not None, quality
        assert np.array_equal(found, expected_of(blocks, quant)), quality


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_libjpeg(steps: ctypes.CDLL, kind: str) -> None:
    image = picture(kind, 24, 40)
    for quality in (3, 30, 75, 92, 100):
        form = Form(samplings=GRAY, quality=quality)
        planes = to_blocks(image, form)
        blocks = in_rows(planes[0].reshape(-1, 64)).astype(np.int16)
        found = inverse_dct(steps, blocks, in_rows(quantisation(quality)).astype(np.uint16))
        assert found is not None
        whole = np.asarray(Image.open(io.BytesIO(write_blocks(planes, (24, 40), form).join())))
        assert np.array_equal(found.reshape(3, 5, 8, 8).swapaxes(1, 2).reshape(24, 40), whole)


@st.composite
def any_blocks(draw: st.DrawFn) -> tuple[Blocks, Table]:
    """As sparse and as large as they may come."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, last = draw(st.integers(1, 140)), draw(st.integers(0, 63))
    size = draw(st.sampled_from([1, 3, 60, 400, 2000, 32768]))
    zigzag = rng.integers(-size, size, (count, 64))
    zigzag[:, last + 1 :] = 0
    zigzag[rng.random(count) < 0.3, 1:] = 0
    zigzag[rng.random((count, 64)) < draw(st.sampled_from([0.0, 0.7, 0.95]))] = 0
    largest = draw(st.sampled_from([1, 2, 16, 255, 8191, 65535]))
    return in_rows(zigzag).astype(np.int16), rng.integers(0, largest, 64, np.uint16, endpoint=True)


def is_within(blocks: Blocks, quant: Table, first: int, second: int, sample: int) -> bool:
    limits = (first, second, sample)
    return all(
        (-limit <= numbers).all() and (numbers < limit).all()
        for numbers, limit in zip(passes(blocks, quant), limits, strict=True)
    )


@given(any_blocks())
@settings(max_examples=150)
def test_a_block_is_transformed_as_defined_or_declined(
    steps: ctypes.CDLL, case: tuple[Blocks, Table]
) -> None:
    blocks, quant = case
    found = inverse_dct(steps, blocks, quant)
    is_small = is_within(blocks, quant, 16384, 16384, 512) and quant.max() < 8192
    if found is None:
        assert not is_small
    else:
        assert is_within(blocks, quant, 16384, 32768, 512)
        assert np.array_equal(found, expected_of(blocks, quant))


@pytest.mark.parametrize(
    ("coefficients", "step"),
    [
        ({0: 256}, 64),  # a coefficient of 16384
        ({0: -257}, 64),
        ({0: 512, 7: 16384}, 1),
        ({0: 1024, 7: 1024}, 64),  # 65536: nothing in 16 bits
        ({0: -32768}, 1),
        ({0: -32768, 63: 1}, 1),
        ({8 * i: 4000 for i in range(8)}, 1),  # 16 bits overflow in the first pass
        (dict.fromkeys(range(64), 16383), 1),  # and 32 bits in the second
        ({0: 4092}, 1),  # a sample of 512
        ({0: -4101}, 1),
        ({0: 3900, 1: 150}, 1),
        ({0: -3900, 8: -200}, 1),
    ],
)
def test_what_no_encoder_writes_is_declined(
    steps: ctypes.CDLL, coefficients: dict[int, int], step: int
) -> None:
    """Among many blocks that encoders do write."""
    blocks = np.ones((70, 64), np.int16)
    blocks[:, 2:] = 0
    for at in (0, 33, 69):
        blocks[at] = 0
        for place, value in coefficients.items():
            blocks[at, place] = value
        assert inverse_dct(steps, blocks, np.full(64, step, np.uint16)) is None
        blocks[at] //= 256
        assert inverse_dct(steps, blocks, np.full(64, step, np.uint16)) is not None


def test_steps_that_no_encoder_writes_are_declined(steps: ctypes.CDLL) -> None:
    quant = np.ones(64, np.uint16)
    blocks = np.zeros((1, 64), np.int16)
    blocks[0, 9] = 8  # with larger steps, a multiple of 65536
    for step in (8192, 16384, 32768, 65535):
        quant[9] = step
        assert inverse_dct(steps, blocks, quant) is None
    blocks[0, 9], quant[9] = 1, 500
    found = inverse_dct(steps, blocks, quant)
    assert found is not None
    assert np.array_equal(found, expected_of(blocks, quant))
