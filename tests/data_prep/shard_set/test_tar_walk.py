"""Headers of tars, against Python's own reading of them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.tar_walk import BLOCK_BYTES, DamagedTarError, Member, reading, walk_tar

Format = Literal[0, 1]
NAMES = st.text("abc./_0é", min_size=1, max_size=60).map(lambda text: f"x{text}")
TYPES = st.sampled_from(
    [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE]
)
FORMATS: st.SearchStrategy[Format] = st.sampled_from([0, 1])  # ustar and GNU


def make_header(name: str, kind: bytes, num_bytes: int, form: Format) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, num_bytes
    return info.tobuf(form, "utf-8", "strict")


def walk(content: bytes, path: Path) -> list[Member]:
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(walk_tar(reading(file.fileno()), 0, len(content)))


@given(NAMES, TYPES, st.integers(0, 3000), FORMATS, st.sampled_from(["", "long/" * 20]))
def test_header_is_read_as_tarfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    kind: bytes,
    num_bytes: int,
    form: Format,
    prefix: str,
) -> None:
    header = make_header(prefix + name, kind, num_bytes, form)[-BLOCK_BYTES:]
    path = tmp_path_factory.getbasetemp() / "a.tar"
    members = walk(header + bytes(-(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES + 1024), path)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    is_empty = info.type in (tarfile.DIRTYPE, tarfile.SYMTYPE)
    assert members == [Member(info.name, BLOCK_BYTES, 0 if is_empty else num_bytes, info.type)]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("name", ["x", "é"])
def test_a_size_of_what_has_no_content_hides_no_file(
    tmp_path: Path, kind: bytes, name: str
) -> None:
    file = make_header("a.jpg", tarfile.REGTYPE, 5, 0) + b"image".ljust(BLOCK_BYTES, b"\0")
    content = make_header(name, kind, len(file), 0) + file + bytes(2 * BLOCK_BYTES)
    members = walk(content, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        expected = [(each.name, each.offset_data) for each in archive]
    assert [(each.name, each.offset) for each in members] == expected


@given(st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_header_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    whole = make_header("n01440764_1.JPEG", tarfile.REGTYPE, 5, 0)
    header = bytearray(whole)
    header[place] ^= change
    path = tmp_path_factory.getbasetemp() / "b.tar"
    try:
        members = walk(bytes(header) + bytes(BLOCK_BYTES + 1024), path)
    except DamagedTarError:
        return
    assert members == [Member("n01440764_1.JPEG", BLOCK_BYTES, 5)]  # padding of the checksum


@pytest.mark.parametrize("size", [b"\0" + b"0000000005\0", b"0000000005\0\0", b" 0000000005\0"])
def test_size_is_read_as_tarfile_reads_it(tmp_path: Path, size: bytes) -> None:
    """Whose numbers end at the first zero byte."""
    header = bytearray(make_header("x", tarfile.REGTYPE, 0, 0))
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
    data = bytes(-(-info.size // BLOCK_BYTES) * BLOCK_BYTES + 1024)
    (member,) = walk(bytes(header) + data, tmp_path / "c.tar")
    assert member.num_bytes == info.size


@pytest.mark.parametrize("size", [b"-0000001000\0", b"\xff" * 10 + b"\xfe\0"])
def test_member_of_negative_size_does_not_lead_back(tmp_path: Path, size: bytes) -> None:
    header = bytearray(make_header("n01440764_1.JPEG", tarfile.REGTYPE, 0, 0))
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert tarfile.TarInfo.frombuf(header, "ascii", "strict").size == -BLOCK_BYTES
    with pytest.raises(DamagedTarError, match=r"after the start \(negative size\)"):
        walk(bytes(header) + bytes(1024), tmp_path / "c.tar")


def test_header_that_became_zeros_is_not_the_end(tmp_path: Path) -> None:
    members = [make_header(f"x{number}", tarfile.REGTYPE, 0, 0) for number in range(3)]
    whole = b"".join(members)
    assert len(walk(whole + bytes(10240), tmp_path / "d.tar")) == 3
    hole = members[0] + bytes(3 * BLOCK_BYTES) + members[2] + bytes(1024)
    with pytest.raises(DamagedTarError, match="an end mark after x0, but more behind it"):
        walk(hole, tmp_path / "d.tar")
