"""JPEGs that are odd and whole, those that lost something, and what training makes of both."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.convert.images import store
from data_prep.shard_set import compiled
from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.pixels import Pixels, decode_jpeg
from data_prep.shard_set.rejection import RejectedImage
from tests.data_prep.odd_jpegs import (
    arithmetic,
    lossless,
    parts,
    sampled,
    segment,
    with_scan_end,
    with_stray_bytes,
    with_transform,
    with_version,
    without_last_scans,
)
from tests.data_prep.raw_data import jpeg, make_pixels

END = b"\xff\xd9"
GRAY = np.asarray(Image.fromarray(make_pixels()).convert("L"))
PLAIN = jpeg(quality=95, subsampling="4:2:0")
PROGRESSIVE = jpeg(quality=95, progressive=True)
RESTARTED = jpeg(quality=95, restart_marker_blocks=2)


def pillow(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def error_of(found: Pixels, expected: Pixels) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(float) - expected).mean())


REPAIRED: dict[str, tuple[Callable[[], bytes], Pixels]] = {
    "Se is 0, as phones write it": (lambda: with_scan_end(PLAIN, 0), pillow(PLAIN)),
    "Se is 255": (lambda: with_scan_end(PLAIN, 255), pillow(PLAIN)),
    "JFIF of version 9": (lambda: with_version(PLAIN, 9), pillow(PLAIN)),
    "JFIF of version 0": (lambda: with_version(PLAIN, 0), pillow(PLAIN)),
    "Adobe's transform is 7": (lambda: with_transform(PLAIN, 7), pillow(PLAIN)),
    "several of these": (
        lambda: with_stray_bytes(with_scan_end(with_version(PLAIN, 9), 0), b"ab", 3),
        pillow(PLAIN),
    ),
    **{
        f"stray bytes before part {number}": (
            functools.partial(with_stray_bytes, PLAIN, b"stray", number),
            pillow(PLAIN),
        )
        for number in range(1, len(parts(PLAIN)) - 1)
    },
    "stray bytes before the end": (
        lambda: PLAIN.removesuffix(END) + b"stray bytes" + END,
        pillow(PLAIN),
    ),
    "no end": (lambda: PLAIN.removesuffix(END), pillow(PLAIN)),
    "half an end": (lambda: PLAIN[:-1], pillow(PLAIN)),
    "no end after restarts": (lambda: RESTARTED.removesuffix(END), pillow(RESTARTED)),
    **{
        "sampling " + ",".join(f"{h}x{v}" for h, v in factors): (
            functools.partial(sampled, make_pixels(), factors),
            pillow(sampled(make_pixels(), factors)),
        )
        for factors in (
            [(1, 3), (1, 1), (1, 1)],
            [(3, 1), (1, 1), (1, 1)],
            [(4, 2), (1, 1), (1, 1)],
            [(4, 4), (1, 1), (1, 1)],
            [(1, 4), (1, 1), (1, 1)],
            [(1, 1), (2, 2), (2, 2)],
            [(2, 2), (2, 1), (1, 2)],
            [(2, 2), (2, 2), (2, 2)],
        )
    },
    "arithmetic codes": (arithmetic, pillow(arithmetic())),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", REPAIRED)
def test_a_whole_jpeg_that_is_odd_is_stored_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = REPAIRED[name]
    content = make()
    stored = store(content, "jpeg", None)
    assert stored.rewritten == "repaired"
    assert error_of(stored.pixels, expected) < 2
    assert np.array_equal(store(content, "rgb", None).pixels, expected)
    assert np.array_equal(decode_jpeg(stored.content), stored.pixels)
    monkeypatch.setattr(compiled, "_library", None)
    assert np.array_equal(decode_jpeg(stored.content), stored.pixels)


@pytest.mark.usefixtures("way")
def test_a_jpeg_that_only_other_decoders_read_does_not_go_in_as_it_is() -> None:
    content = lossless(GRAY)
    assert np.array_equal(pillow(content)[:, :, 0], GRAY)
    stored = store(content, "jpeg", None)
    assert stored.content != content
    assert error_of(decode_jpeg(stored.content), pillow(content)) < 1


def test_the_way_up_is_found_in_a_jpeg_that_pillow_does_not_open() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = with_stray_bytes(jpeg(quality=95, exif=exif), b"stray", 1)
    stored = store(content, "jpeg", None)
    assert stored.rewritten == "rotated"
    assert error_of(stored.pixels, pillow(jpeg(quality=95))[::-1, ::-1]) < 2


HONEST = {
    "restart marks": RESTARTED,
    "4:1:1": sampled(make_pixels(), [(4, 1), (1, 1), (1, 1)]),
    "4:4:0": sampled(make_pixels(), [(1, 2), (1, 1), (1, 1)]),
    "4:2:2 as some cameras write it": sampled(make_pixels(), [(2, 2), (1, 2), (1, 2)]),
    "4:4:4 as some cameras write it": sampled(make_pixels(), [(2, 1), (2, 1), (2, 1)]),
    "further pictures after its end": PLAIN + PROGRESSIVE,
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", HONEST)
def test_what_every_decoder_reads_goes_in_as_it_is(name: str) -> None:
    stored = store(HONEST[name], "jpeg", None)
    assert stored.content == HONEST[name]
    assert np.array_equal(stored.pixels, pillow(HONEST[name]))


def cut_with_an_end(content: bytes) -> bytes:
    """As a file looks whose scan lost its second half."""
    *header, data = parts(content)
    return b"".join(header) + data[: len(data) // 2] + END


def with_a_damaged_restart(content: bytes) -> bytes:
    return content.replace(b"\xff\xd2", b"\xff\xd6", 1)


def with_a_cut_restart(content: bytes) -> bytes:
    place = content.index(b"\xff\xd1")
    return content[: place - 20] + content[place:]


def without_table(content: bytes, marker: int) -> bytes:
    """A table whose mark is broken looks like bytes that belong to nothing."""
    return content.replace(bytes((0xFF, marker)), bytes((0, marker)), 1)


def without_a_component() -> bytes:
    content = sampled(make_pixels(), [(1, 1), (1, 1), (1, 1)])
    return content[: content.rindex(b"\xff\xdb")] + END


LOST: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut": (lambda: PLAIN[:-60], "truncated"),
    "cut, with an end": (lambda: cut_with_an_end(PLAIN), "truncated"),
    "progressive, cut with an end": (lambda: cut_with_an_end(PROGRESSIVE), "truncated"),
    "cut behind an odd version": (lambda: cut_with_an_end(with_version(PLAIN, 9)), "truncated"),
    "cut behind Se 0": (lambda: cut_with_an_end(with_scan_end(PLAIN, 0)), "truncated"),
    "cut behind stray bytes": (
        lambda: with_stray_bytes(cut_with_an_end(PLAIN), b"stray", 3),
        "truncated",
    ),
    "cut between restarts, with stray bytes at its end": (
        lambda: with_a_cut_restart(RESTARTED).removesuffix(END) + b"many stray bytes" + END,
        "truncated",
    ),
    "a scan and the end missing": (
        lambda: without_last_scans(PROGRESSIVE).removesuffix(END),
        "truncated",
    ),
    "a restart that is another": (lambda: with_a_damaged_restart(RESTARTED), "undecodable"),
    "quantization without its mark": (lambda: without_table(PLAIN, 0xDB), "undecodable"),
    "a scan by tables 13, behind stray bytes": (
        lambda: with_stray_bytes(PLAIN, b"stray", 3).replace(b"\x01\0\x02", b"\x01\xdd\x02"),
        "undecodable",
    ),
    "no picture": (lambda: b"\xff\xd8" + END, "undecodable"),
    "12 bits a value": (
        lambda: PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
        "undecodable",
    ),
    "two components": (
        lambda: (
            b"\xff\xd8" + segment(0xC0, b"\x08\0\x10\0\x10\x02\x01\x11\0\x02\x11\0") + PLAIN[2:]
        ),
        "undecodable",
    ),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", LOST)
def test_a_jpeg_that_lost_pixels_is_rejected(name: str) -> None:
    make, reason = LOST[name]
    with pytest.raises(RejectedImage, match=f"^{reason}: .+; ") as rejection:
        store(make(), "jpeg", None)
    assert rejection.value.reason == reason


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: without_last_scans(PROGRESSIVE), "truncated"),
        (lambda: without_last_scans(PROGRESSIVE, 6), "truncated"),
        (without_a_component, "truncated"),
        (lambda: without_table(PLAIN, 0xC4), "undecodable"),
    ],
    ids=["the last scan", "most scans", "a component", "Huffman codes"],
)
def test_what_libjpeg_does_not_miss_is_missed(make: Callable[[], bytes], reason: str) -> None:
    if not is_compiled():
        pytest.skip("data_prep.shard_set._pixels was not built")
    with pytest.raises(RejectedImage, match=f"^{reason}: "):
        store(make(), "jpeg", None)


def edits(content: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes of the header changed, or a part of it left out, repeated or moved."""
    header_bytes = len(content) - len(parts(content)[-1])
    changes = st.dictionaries(
        st.integers(2, header_bytes - 1), st.integers(0, 255), min_size=1, max_size=3
    )

    def change(values: dict[int, int]) -> bytes:
        changed = bytearray(content)
        for place, value in values.items():
            changed[place] = value
        return bytes(changed)

    count = len(parts(content))
    orders = st.lists(st.integers(1, count - 1), min_size=count - 3, max_size=count)
    reordered = orders.map(lambda order: b"".join(parts(content)[i] for i in (0, *order)))
    return st.one_of(changes.map(change), reordered)


SMALL = [
    jpeg(height=20, width=25, subsampling="4:2:0"),
    jpeg(height=20, width=25, progressive=True),
]


@given(st.sampled_from(SMALL).flatmap(edits))
def test_whatever_is_stored_is_what_training_reads_and_pillow_sees(content: bytes) -> None:
    with contextlib.suppress(RejectedImage):
        stored = store(content, "jpeg", None)
        assert np.array_equal(decode_jpeg(stored.content), stored.pixels)
        if stored.content == content:
            difference = pillow(content).astype(int) - stored.pixels
            assert np.abs(difference).max() <= 3


@given(st.sampled_from([PLAIN, PROGRESSIVE, RESTARTED]), st.data())
def test_a_jpeg_that_is_cut_is_rejected_or_whole(content: bytes, data: st.DataObject) -> None:
    kept = len(content) - data.draw(st.integers(1, 12) | st.integers(1, len(content) - 2))
    with contextlib.suppress(RejectedImage):
        assert np.array_equal(store(content[:kept], "rgb", None).pixels, pillow(content))
        assert kept >= len(content) - 4
