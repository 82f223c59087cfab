"""Paths as users give them, and files that get their final name only when they are complete."""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import re
import secrets
import shlex
from collections.abc import Collection, Iterator
from io import BufferedRandom
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
"""How the name of an unfinished file begins; `remove_leftovers` finds it by that."""

_NO_TEXT = re.compile("[\ud800-\udfff]")
"""How Python keeps the bytes of a name that are no UTF-8."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Only writing fails so; other errors may come from what the block reads meanwhile."""

_LONGEST_LINE = 2000

UNSUPPORTED = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""How a file system answers a call that it does not know; CIFS and FUSE lack some."""


class PathOptionError(ValueError, argparse.ArgumentTypeError):
    """The given path is empty, or begins with `~` and the name of no user."""


def expanded(text: str) -> str:
    """`text` with a leading `~` or `~USER` replaced by that user's home directory.

    A shell expands a word that begins with it, but not `--output=~`. Raises `PathOptionError`.
    """
    path = os.path.expanduser(text)  # noqa: PTH111 - Path changes the slashes of a URL
    if path.startswith("~"):
        home = text.partition("/")[0]
        raise PathOptionError(
            f"{text}: {home} is no user's home directory; give ./{text} for a name that begins so"
        )
    return path


def path_option(text: str) -> Path:
    """The path that an option or argument of a command line means; every one is read here.

    Raises `PathOptionError`, also for an empty text: a script's variable may be unset.
    """
    if not text:
        raise PathOptionError("the path is empty; give . for the current folder")
    return Path(expanded(text))


def as_text(name: str) -> str:
    """`name` as it can be shown: U+FFFD stands for each byte of a path that is no text."""
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", name)


def printable(name: str) -> str:
    """`name` as text that stays on its line: what has no shape is written as an escape."""
    text = as_text(name)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def as_command(*words: str | Path) -> str:
    """The words as a shell takes them, on a line that a terminal shows; for people to copy.

    A path stays one whatever it begins with. Bytes without a shape are written in `$'…'`, which
    bash, zsh, ksh and the sh of POSIX 2024 read.
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith(("-", "~")):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    plain = (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}" for byte in os.fsencode(text))
    return "$'" + "".join(f"\\{one}" if one in "\\'" else one for one in plain) + "'"


@contextlib.contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[BufferedRandom]:
    """Open a binary file that takes the name `path` only when the block ends without an error.

    With `durable` the bytes and the name have reached the disk when the block is left; without it
    a power cut may lose the new version (a reader still never sees half of one). The file's mode
    follows the umask, also where there was a file before.
    Raises `OSError` as `open`, `write` and `rename` do, with a name where the disk is full; `path`
    then keeps its old content.
    """
    # Made as any file is, not by mkstemp: its mode would need a chmod, which some file systems
    # refuse.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            if durable:
                sync(file.fileno())
        _rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            is_of_disk = error.filename is None and error.errno in (*NO_ROOM, errno.EFBIG)
            if is_of_disk or error.filename == str(temporary):
                error.filename = str(path)
        raise
    if durable:
        sync_directory(path.parent)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path` through `atomic_writer`."""
    with atomic_writer(path, durable=durable) as file:
        file.write(content)


def _rename(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except OSError as error:
        if error.errno in UNSUPPORTED:  # as on a mounted bucket
            error.strerror = (
                "its file system cannot rename files, without which none is whole or not there; "
                "write to another one, and copy the result"
            )
            error.filename, error.filename2 = str(target), None
        raise


def sync(handle: int) -> None:
    """Flush the open file or directory to the disk, where the file system supports that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_directory(path: Path) -> None:
    """Make renames inside the directory `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def remove_leftovers(directory: Path, names: Collection[str] | None = None) -> None:
    """Delete unfinished files that a killed writer left in `directory`.

    With `names` only those that were to get one of these names.
    """
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        name = path.name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0]
        if names is None or name in names:
            path.unlink(missing_ok=True)


def describe(error: Exception) -> str:
    """Its text; of an `OSError` which file and what is wrong with it, without its number.

    On one line of at most 2,000 characters, whatever a file put into it.
    """
    text = str(error)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = f"{name}{error.strerror or error}"
    line = " ".join(text.splitlines())
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[: half - 2]} … {line[2 - half :]}"


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
