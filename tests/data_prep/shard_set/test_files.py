"""Files that are whole or not there, whatever happens to their writer."""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from data_prep.shard_set.files import (
    TEMPORARY_PREFIX,
    atomic_writer,
    describe,
    expanded,
    path_option,
    remove_leftovers,
    sha256_of,
    sync_directory,
    write_atomically,
)
from data_prep.shard_set.locks import is_locked, locked
from pipeline.config.data import location_option


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/of/me"),
        ("~/shards", "/home/of/me/shards"),
        ("~root/shards", "/root/shards"),
        ("./~/shards", "./~/shards"),
        ("a/~b", "a/~b"),
        ("https://host/~me/shards", "https://host/~me/shards"),
    ],
)
def test_a_tilde_is_a_home_directory(text: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    assert expanded(text) == path
    assert path_option(text) == Path(path)


def test_the_tilde_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^~no\.body/x: ~no\.body is no .*; give \./~no\.body/x"):
        path_option("~no.body/x")
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--output", type=path_option)
    with pytest.raises(argparse.ArgumentError, match=r"--output: ~no\.body/x: ~no\.body is no"):
        parser.parse_args(["--output=~no.body/x"])


def test_an_empty_path_is_not_the_current_folder() -> None:
    """A script's variable that is not set would make it so."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--output", type=path_option)
    parser.add_argument("--shards", type=location_option)
    for word in ("--output=", "--shards="):
        with pytest.raises(argparse.ArgumentError, match=r": the path is empty; give \. for the c"):
            parser.parse_args([word])
    assert parser.parse_args(["--output=."]).output == Path()


WRITE_HALF = """
import sys
from pathlib import Path
from data_prep.shard_set.files import atomic_writer

with atomic_writer(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has an older version already."""
    path = tmp_path / "shard.tar"
    path.write_bytes(b"old")
    return path


def others(path: Path) -> list[str]:
    """Whatever lies beside the file."""
    return [other.name for other in path.parent.iterdir() if other != path]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_takes_its_name_when_it_is_whole(path: Path, durable: bool) -> None:
    with atomic_writer(path, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (temporary,) = others(path)
        assert temporary.startswith(TEMPORARY_PREFIX)
    assert path.read_bytes() == b"new"
    assert others(path) == []


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def note(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((name == path.parent, os.fstat(handle).st_size, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(path, b"newer")
    content, name = synced
    assert content == (False, 5, b"old")
    assert name[0] is True
    assert name[2] == b"newer"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_that_the_umask_leaves(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(path, b"content")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_is_written_to_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_system_that_cannot_rename_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="cannot rename files") as error:
        write_atomically(path, b"new")
    assert describe(error.value).startswith(f"{path}: its file system cannot rename files")
    assert path.read_bytes() == b"old"
    assert others(path) == []


def fail_half_way(file: BinaryIO) -> None:
    file.write(b"half")
    raise RuntimeError("out of luck")


def test_an_error_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"), atomic_writer(path) as file:
        fail_half_way(file)
    assert path.read_bytes() == b"old"
    assert others(path) == []


def test_a_failing_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "taken", b"content")
    assert [other.name for other in tmp_path.iterdir()] == ["taken"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", b"content")


def test_a_full_disk_is_named_by_the_file_that_it_did_not_take(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as error:
        write_atomically(path, b"new")
    assert describe(error.value) == f"{path}: No space left on device"


def fail_to_read(_: BinaryIO) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_error_that_reading_may_have_raised_is_left_alone(path: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as error, atomic_writer(path) as file:
        fail_to_read(file)
    assert error.value.filename is None


def test_a_killed_writer_leaves_the_old_file_and_a_leftover(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_HALF, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert path.read_bytes() == b"old"
    (leftover,) = others(path)
    assert leftover.startswith(f"{TEMPORARY_PREFIX}shard.tar-")
    remove_leftovers(path.parent)
    assert others(path) == []
    assert path.read_bytes() == b"old"


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    kept = [".hidden", "tmp-file", "x.tmp-"]
    for name in [*kept, f"{TEMPORARY_PREFIX}a-123"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(other.name for other in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("num_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_hash_of_files_longer_than_a_block(tmp_path: Path, num_bytes: int) -> None:
    content = bytes(range(256)) * (num_bytes // 256) + bytes(num_bytes % 256)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_directory_is_synced_or_the_error_is_raised(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "nowhere")


def test_without_locks_it_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    for name in ("a", "b"):
        with locked(tmp_path / name):
            assert (tmp_path / name).exists()
    assert not is_locked(tmp_path / "a")
    (line,) = caplog.messages
    assert line.startswith(f"cannot lock files in {tmp_path}: No locks available; going on without")
