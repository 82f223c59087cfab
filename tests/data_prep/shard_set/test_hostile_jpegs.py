"""JPEGs whose headers lie, and whose codes say what no encoder writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.data_prep.odd_jpegs import segment
from tests.data_prep.shard_set.comparing import HEIGHT, WIDTH, WINDOWS, compare, compare_all, good
from tests.data_prep.shard_set.decoders import needs_decoder
from tests.data_prep.shard_set.jpeg_writer import (
    DHT,
    DNL,
    DQT,
    SAMPLINGS,
    SOF0,
    SOS,
    Form,
    Pieces,
    codes_of,
    paint,
    standard_tables,
    table_segment,
    to_blocks,
    to_bytes,
    write_blocks,
)

pytestmark = needs_decoder


def changed(pieces: Pieces, marker: int, *new: bytes) -> bytes:
    """With other segments in the place of the first one of that marker."""
    other = pieces.copy()
    place = other.number(marker)
    other.header[place : place + 1] = new
    return other.join()


def sized(frame: bytes, height: int, width: int) -> bytes:
    return frame[:5] + height.to_bytes(2) + width.to_bytes(2) + frame[9:]


def frame_lies(pieces: Pieces) -> Iterator[tuple[str, bytes]]:
    """By name, what the headers of frame and scan say that is not so."""
    frame, scan = pieces.header[pieces.number(SOF0)], pieces.header[pieces.number(SOS)]
    for height, width in (
        *((65535, 65535), (65501, 44), (65500, 44), (40, 65501), (40, 65500), (0, 44), (40, 0)),
        *((0, 0), (40, 45), (41, 44), (40, 48), (48, 44), (40, 49), (49, 44), (40, 32)),
        *((32, 44), (32, 32), (1, 1), (16, 200)),
    ):
        yield f"{height}×{width}", changed(pieces, SOF0, sized(frame, height, width))
    for bits in (0, 7, 9, 12, 16):
        yield f"{bits} bits", changed(pieces, SOF0, frame[:4] + bytes((bits,)) + frame[5:])
    for count in (0, 1, 2, 4, 5, 255):
        yield f"{count} parts", changed(pieces, SOF0, frame[:9] + bytes((count,)) + frame[10:])
        yield f"{count} in the scan", changed(pieces, SOS, scan[:4] + bytes((count,)) + scan[5:])
    for kind in (*range(0xC0, 0xD0), 0xF7, 0xDE, 0xDF):
        yield f"SOF of {kind:x}", changed(pieces, SOF0, b"\xff" + bytes((kind,)) + frame[2:])
    for byte in range(10, len(frame)):
        for value in (0, 1, 2, 3, 4, 5, 0x10, 0x20, 0x41, 0x11, 0x12, 0x44, 0x81, 0xFF):
            lie = frame[:byte] + bytes((value,)) + frame[byte + 1 :]
            yield f"SOF[{byte}] {value}", changed(pieces, SOF0, lie)
    for byte in range(4, len(scan)):
        for value in (0, 1, 2, 3, 4, 5, 0x01, 0x10, 0x11, 0x22, 0x34, 0x3E, 0x40, 0xFF):
            lie = scan[:byte] + bytes((value,)) + scan[byte + 1 :]
            yield f"SOS[{byte}] {value}", changed(pieces, SOS, lie)


def segment_lies(pieces: Pieces) -> Iterator[tuple[str, bytes]]:
    """Lengths that are not so, bytes that belong to nothing, and quantization tables."""
    for marker in {part[1] for part in pieces.header}:
        part = pieces.header[pieces.number(marker)]
        for length in (0, 1, 2, 3, 4, len(part) - 3, len(part) - 1, len(part) + 60, 65535):
            lie = part[:2] + length.to_bytes(2) + part[4:]
            yield f"length {length} of {marker:x}", changed(pieces, marker, lie)
        yield f"{marker:x} filled up", changed(pieces, marker, b"\xff\xff" + part)
        yield f"{marker:x} behind stray bytes", changed(pieces, marker, b"\x12\0" + part)
        yield f"{marker:x} longer", changed(pieces, marker, segment(marker, part[4:] + bytes(5)))
    for value in (0, 1, 255):
        table = segment(DQT, b"\0" + bytes((value,)) * 64)
        yield f"quantisation by {value}", changed(pieces, DQT, table)
    for value in (0, 1, 255, 256, 2000, 32767, 32768, 65535):
        table = segment(DQT, b"\x10" + value.to_bytes(2) * 64)
        yield f"16 bits of {value}", changed(pieces, DQT, table)
    for number in (1, 2, 3, 4, 15):
        table = segment(DQT, bytes((number,)) + pieces.header[1][5:])
        yield f"quantisation {number}", changed(pieces, DQT, table)


def order_lies(pieces: Pieces) -> Iterator[tuple[str, bytes]]:
    """Segments that come twice, too late or not at all."""
    frame, scan = pieces.header[pieces.number(SOF0)], pieces.header[pieces.number(SOS)]
    yield "two frames", changed(pieces, SOF0, frame, frame)
    yield "two scans in a row", changed(pieces, SOS, scan, scan)
    yield "a frame behind the scan", changed(pieces, SOS, scan, frame)
    yield "two scans", pieces.join()[:-2] + scan + b"".join(pieces.data) + pieces.end
    yield "two images", pieces.join() * 2
    yield (
        "an image in a mark",
        pieces.join()[:2] + segment(0xE1, pieces.join()) + (pieces.join()[2:]),
    )
    yield "SOI twice", b"\xff\xd8" + pieces.join()
    for end in (b"", b"\xff", b"\xd9", b"\xff\xd9\0", b"\xff\xff\xd9", b"\0\0\xff\xd9"):
        yield f"end {end.hex()}", pieces.join()[:-2] + end
    lines = segment(DNL, HEIGHT.to_bytes(2))
    yield "DNL", changed(pieces, SOF0, sized(frame, 0, WIDTH))[:-2] + lines + pieces.end
    yield "DNL of a known height", pieces.join()[:-2] + lines + pieces.end
    yield "trailing bytes", pieces.join() + bytes(range(256))


def header_lies() -> Iterator[tuple[str, bytes]]:
    for interval in (0, 2):
        pieces = good(interval)
        for lies in (frame_lies, segment_lies, order_lies):
            for name, content in lies(pieces):
                yield f"interval {interval}: {name}", content


def table_lies() -> Iterator[tuple[str, bytes]]:
    """Huffman tables that are no codes, or of numbers that no encoder needs."""
    for interval in (0, 2):
        pieces = good(interval)
        tables = standard_tables()
        for key, (counts, symbols) in tables.items():

            def with_table(
                counts: bytes,
                symbols: bytes,
                key: tuple[int, int] = key,
                pieces: Pieces = pieces,
            ) -> bytes:
                changed = pieces.copy()
                numbers = [part[4] for part in changed.header if part[1] == DHT]
                place = changed.number(DHT) + numbers.index(16 * key[0] + key[1])
                changed.header[place] = table_segment(key, counts, symbols)
                return changed.join()

            name = f"interval {interval}, table {key}: "
            for bits in range(16):
                for more in {1, 2, 2**bits, 255 - counts[bits]} - {0}:
                    count = counts[bits] + more
                    if count < 256:
                        full = counts[:bits] + bytes((count,)) + counts[bits + 1 :]
                        yield name + f"{more} of {bits} more", with_table(full, symbols)
                        filled = symbols + bytes(more)
                        yield name + f"{more} of {bits} more, filled", with_table(full, filled)
                if counts[bits]:
                    less = counts[:bits] + bytes((counts[bits] - 1,)) + counts[bits + 1 :]
                    yield name + f"one of {bits} less", with_table(less, symbols[:-1])
                    yield name + f"one of {bits} less, not said", with_table(less, symbols)
            yield name + "empty", with_table(bytes(16), b"")
            yield name + "all of 1 bit", with_table(b"\xff" + bytes(15), bytes(255))
            yield name + "256 symbols", with_table(bytes(14) + b"\xff\1", bytes(range(256)))
            yield name + "257 symbols", with_table(bytes(14) + b"\xff\2", bytes(257))
            for symbol in (0x0B, 0x0C, 0x0F, 0x10, 0x1F, 0xF0, 0xFF, 0xF1, 0x0A):
                for place in (0, 1, 2, len(symbols) - 1):
                    other = symbols[:place] + bytes((symbol,)) + symbols[place + 1 :]
                    yield name + f"{symbol:x} at {place}", with_table(counts, other)


@pytest.mark.parametrize("lies", [header_lies, table_lies])
def test_headers_that_lie(lies: Callable[[], Iterator[tuple[str, bytes]]]) -> None:
    found: Counter[str] = Counter()
    for name, content in lies():
        try:
            found += compare_all([content])
        except AssertionError as error:
            raise AssertionError(name) from error
    assert min(found["complaint"], found["ours"], found["libjpeg's"]) > 50, found


@pytest.mark.parametrize("interval", [0, 1])
def test_coefficients_that_no_encoder_writes(interval: int) -> None:
    """At the limits of what codes can say, and of what 16 bits hold."""
    form = Form(samplings=SAMPLINGS["4:2:0"], interval=interval, quality=60)
    rng = np.random.default_rng(1)
    found: Counter[str] = Counter()
    for size in (8, 10, 11, 12, 13, 14, 15):
        for quality in (1, 60, 100):
            for density in (1, 8, 64):
                planes = to_blocks(paint("photo", HEIGHT, WIDTH), form)
                for plane in planes:
                    noise = rng.integers(-(2 ** (size - 1)) + 1, 2 ** (size - 1), plane.shape)
                    plane[:] = np.where(rng.integers(0, 64, plane.shape) < density, noise, 0)
                    plane[:, :, 0] = noise[:, :, 0]
                of_size = Form(
                    samplings=form.samplings, interval=interval, quality=quality, tables="flat"
                )
                content = write_blocks(planes, (HEIGHT, WIDTH), of_size).join()
                for window in WINDOWS:
                    found[compare(content, window)] += 1
    assert found["libjpeg's"] > 50, found
    assert found.total() == 7 * 9 * len(WINDOWS)


@pytest.mark.parametrize("interval", [0, 1])
def test_blocks_that_do_not_end_where_they_should(interval: int) -> None:
    """Codes put together by chance: runs beyond the last coefficient, and DC beyond all bounds."""
    rng = np.random.default_rng(2)
    tables = standard_tables()
    codes = {key: codes_of(*table) for key, table in tables.items()}
    pieces = good(interval)
    found: Counter[str] = Counter()
    for _ in range(100):
        data = []
        for _ in pieces.data:
            bits = ""
            for number in (0, 0, 0, 0, 1, 1) * (9 // len(pieces.data)):
                size = int(rng.integers(0, 12))
                bits += codes[0, number][size] + "1" * size
                end = int(rng.integers(1, 70))
                k = 1
                while k < end:
                    symbol = int(rng.choice([*codes[1, number]]))
                    bits += codes[1, number][symbol] + "0" * (symbol % 16)
                    k += symbol // 16 + 1
                    if symbol == 0:
                        break
                else:
                    bits += codes[1, number][0] if k < 64 else ""
            data.append(to_bytes(bits))
        changed = pieces.copy()
        changed.data = data
        for window in WINDOWS:
            found[compare(changed.join(), window)] += 1
    assert found["libjpeg's"] + found["ours"] > 100, found
