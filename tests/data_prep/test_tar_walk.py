"""Headers of tars, against Python's own reading of them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tar_walk import BLOCK_BYTES, DamagedTarError, Member, walk_tar

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
        return list(walk_tar(file.fileno(), 0, len(content)))


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
    info = tarfile.TarInfo.frombuf(header, "ascii", "backslashreplace")
    assert members == [Member(info.name, BLOCK_BYTES, num_bytes, info.type)]


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
