"""Writes baseline JPEGs with any sampling, restart interval and Huffman tables; slow and small.

What it writes comes in pieces, so that a test can put them together in a wrong way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.pixels import Pixels
from tests.data_prep.odd_jpegs import parts, segment
from tests.data_prep.raw_data import encode

Blocks = npt.NDArray[np.int64]
"""Quantised coefficients, rows×columns×64, in zigzag order."""

SOF0, DHT, SOS, DQT, DNL, DRI, APP0 = 0xC0, 0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xE0
JFIF = segment(APP0, b"JFIF\0\x01\x01\0\0\1\0\1\0\0")

GRAY = ((1, 1),)
SAMPLINGS = {
    "4:4:4": ((1, 1),) * 3,
    "4:2:2": ((2, 1), (1, 1), (1, 1)),
    "4:2:0": ((2, 2), (1, 1), (1, 1)),
    "4:4:0": ((1, 2), (1, 1), (1, 1)),
    "4:1:1": ((4, 1), (1, 1), (1, 1)),
    "gray": GRAY,
}
"""Samples of each component in an MCU, across and down, of what encoders write."""

TableKind = Literal["standard", "flat", "long"]

Tables = dict[tuple[int, int], tuple[bytes, bytes]]
"""By class (0: DC) and number: how many codes there are of 1 to 16 bits, and their symbols."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How an image is written."""

    samplings: Sequence[tuple[int, int]] = SAMPLINGS["4:2:0"]
    quality: int = 75
    interval: int = 0
    """MCUs between restart markers."""
    tables: TableKind = "standard"
    """Those of T.81, K.3; codes of one length; or some short codes and the others of 16 bits."""
    marks: bytes = JFIF
    """Segments before all others."""


@dataclass(slots=True)
class Pieces:
    """A JPEG before it is put together."""

    header: list[bytes]
    """Its segments: marks, quantisation tables, frame, Huffman tables, restart interval, scan."""
    data: list[bytes]
    """What lies between restart markers."""
    end: bytes = b"\xff\xd9"
    restarts: list[bytes] = field(default_factory=list)
    """The markers between `data`."""

    def __post_init__(self) -> None:
        if not self.restarts:
            self.restarts = [bytes((0xFF, 0xD0 + i % 8)) for i in range(len(self.data) - 1)]

    def copy(self) -> Pieces:
        return replace(self, header=[*self.header], data=[*self.data], restarts=[*self.restarts])

    def number(self, marker: int) -> int:
        """The place in `header` of the first segment with that marker."""
        return next(i for i, piece in enumerate(self.header) if piece[1] == marker)

    def join(self) -> bytes:
        data = [self.data[0]]
        for restart, content in zip(self.restarts, self.data[1:], strict=True):
            data += restart, content
        return b"".join((b"\xff\xd8", *self.header, *data, self.end))


PAINTINGS = ("noise", "flat", "checkerboard", "waves", "photo")


def paint(kind: str, height: int, width: int) -> Pixels:
    """One of `PAINTINGS`, uint8 height×width×3."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(height * width)
    waves = [np.sin(x / 3 + y / 9), np.cos(y / 5), np.sin((x + y) / 7)]
    values: npt.NDArray[np.float64]
    if kind == "noise":
        values = rng.uniform(0, 256, (height, width, 3))
    elif kind == "flat":
        values = np.full((height, width, 3), (250.0, 3.0, 90.0))
    elif kind == "checkerboard":
        values = 255.0 * np.stack(((y + x) % 2, (y // 2 + x) % 2, x % 2), 2)
    else:
        values = 127 + 90 * np.stack(waves, 2)
        if kind == "photo":
            values += rng.normal(0, 20, (height, width, 3))
    painted: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return painted


def _zigzag() -> list[int]:
    order = sorted(
        (y + x, x if (y + x) % 2 == 0 else y, 8 * y + x) for y in range(8) for x in range(8)
    )
    return [place for _, _, place in order]


ZIGZAG = _zigzag()


def quantisation(quality: int) -> npt.NDArray[np.int64]:
    """A table in zigzag order; larger steps for higher frequencies, scaled as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = 12 + 4 * np.add.outer(np.arange(8), np.arange(8))
    table: npt.NDArray[np.int64] = np.clip((base * scale + 50) // 100, 1, 255).ravel()[ZIGZAG]
    return table


def to_blocks(pixels: Pixels, form: Form) -> list[Blocks]:
    """The blocks of each component, of whole MCUs."""
    image = Image.fromarray(pixels)
    planes = image.convert("YCbCr").split() if len(form.samplings) == 3 else (image.convert("L"),)
    across, down = (max(factors) for factors in zip(*form.samplings, strict=True))
    mcus = -(-image.width // (8 * across)), -(-image.height // (8 * down))
    angles = np.outer(np.arange(8), 2 * np.arange(8) + 1) * np.pi / 16
    dct = np.cos(angles) / 2
    dct[0] /= np.sqrt(2)
    found = []
    for plane, (h, v) in zip(planes, form.samplings, strict=True):
        size = -(-image.width * h // across), -(-image.height * v // down)
        small = np.asarray(plane.resize(size, Image.Resampling.BOX), np.float64) - 128
        rows, columns = mcus[1] * v, mcus[0] * h
        margin = ((0, 8 * rows - small.shape[0]), (0, 8 * columns - small.shape[1]))
        tiles = np.pad(small, margin, "edge").reshape(rows, 8, columns, 8).swapaxes(1, 2)
        spectrum = (dct @ tiles @ dct.T).reshape(rows, columns, 64)[:, :, ZIGZAG]
        found.append(np.rint(spectrum / quantisation(form.quality)).astype(np.int64))
    return found


Symbol = tuple[int, int, int, int]
"""Class and number of its table, the symbol, and the bits behind it as a number."""


def _symbols(block: list[int], before: int, table: int) -> Iterator[Symbol]:
    def of(kind: int, run: int, value: int) -> Symbol:
        size = abs(value).bit_length()
        return kind, table, 16 * run + size, value if value >= 0 else value + (1 << size) - 1

    yield of(0, 0, block[0] - before)
    run = 0
    for value in block[1:]:
        if value == 0:
            run += 1
            continue
        while run > 15:
            yield of(1, 15, 0)
            run -= 16
        yield of(1, run, value)
        run = 0
    if run:
        yield of(1, 0, 0)


def _in_order(planes: list[Blocks], size: tuple[int, int], form: Form) -> list[list[Symbol]]:
    """The symbols of each restart segment."""
    height, width = size
    across, down = (max(factors) for factors in zip(*form.samplings, strict=True))
    units = form.samplings if len(planes) > 1 else GRAY  # a scan of one component has no MCUs
    if len(planes) > 1:
        mcus = -(-height // (8 * down)), -(-width // (8 * across))
    else:
        mcus = -(-height // 8), -(-width // 8)
    interval = form.interval or mcus[0] * mcus[1]
    found: list[list[Symbol]] = []
    for number in range(mcus[0] * mcus[1]):
        if number % interval == 0:
            found.append([])
            before = [0] * len(planes)
        row, column = divmod(number, mcus[1])
        for i, (plane, (h, v)) in enumerate(zip(planes, units, strict=True)):
            for y in range(row * v, row * v + v):
                for x in range(column * h, column * h + h):
                    block = plane[y, x].tolist()
                    found[-1] += _symbols(block, before[i], min(i, 1))
                    before[i] = block[0]
    return found


def standard_tables() -> Tables:
    """Those of T.81, K.3 to K.6."""
    found: Tables = {}
    for part in parts(encode(Image.new("RGB", (8, 8)), "JPEG")):
        place = 4
        while part[:2] == b"\xff\xc4" and place < len(part):
            counts = part[place + 1 : place + 17]
            stop = place + 17 + sum(counts)
            found[divmod(part[place], 16)] = counts, part[place + 17 : stop]
            place = stop
    return found


def _made_tables(segments: list[list[Symbol]], kind: TableKind) -> Tables:
    if kind == "standard":
        return standard_tables()
    used: dict[tuple[int, int], set[int]] = {}
    for table_class, number, symbol, _ in (symbol for found in segments for symbol in found):
        used.setdefault((table_class, number), set()).add(symbol)
    tables = {}
    for key, symbols in used.items():
        short = 0 if kind == "flat" else min(8, len(symbols))  # of 1 to 8 bits
        rest = len(symbols) - short
        counts = [1] * short + [0] * (16 - short)
        counts[rest.bit_length() - 1 if kind == "flat" else 15] += rest
        tables[key] = bytes(counts), bytes(sorted(symbols))
    return tables


def codes_of(counts: bytes, symbols: bytes) -> dict[int, str]:
    """The code of each symbol, in bits."""
    found: dict[int, str] = {}
    code = place = 0
    for bits, count in enumerate(counts, 1):
        for symbol in symbols[place : place + count]:
            found[symbol] = f"{code:0{bits}b}"
            code += 1
        place += count
        code *= 2
    return found


def to_bytes(bits: str) -> bytes:
    """Filled up with ones, and with a zero behind each 0xFF."""
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def table_segment(key: tuple[int, int], counts: bytes, symbols: bytes) -> bytes:
    return segment(DHT, bytes((16 * key[0] + key[1],)) + counts + symbols)


def write_blocks(planes: list[Blocks], size: tuple[int, int], form: Form) -> Pieces:
    """An image of height×width."""
    segments = _in_order(planes, size, form)
    tables = _made_tables(segments, form.tables)
    codes = {key: codes_of(*table) for key, table in tables.items()}
    data = []
    for symbols in segments:
        bits = []
        for table_class, number, symbol, value in symbols:
            bits.append(codes[table_class, number][symbol])
            if symbol % 16:
                bits.append(f"{value:0{symbol % 16}b}")
        data.append(to_bytes("".join(bits)))
    count = len(planes)
    frame = b"\x08" + size[0].to_bytes(2) + size[1].to_bytes(2) + bytes((count,))
    scan = bytes((count,))
    for number, (h, v) in enumerate(form.samplings, 1):
        frame += bytes((number, 16 * h + v, 0))
        scan += bytes((number, 0 if number == 1 else 0x11))
    header = [
        form.marks,
        segment(DQT, b"\0" + bytes(quantisation(form.quality).tolist())),
        segment(SOF0, frame),
        *(table_segment(key, *table) for key, table in sorted(tables.items())),
        *([segment(DRI, form.interval.to_bytes(2))] if form.interval else []),
        segment(SOS, scan + b"\0\x3f\0"),
    ]
    return Pieces(header, data)


def write_jpeg(pixels: Pixels, form: Form) -> Pieces:
    """Of uint8 H×W×3."""
    return write_blocks(to_blocks(pixels, form), pixels.shape[:2], form)
