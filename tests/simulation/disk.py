"""A disk that forgets: what a power cut may leave of calls whose effects nobody has synced.

The files are real ones, in a folder of memory. Beside them is kept how to undo each change of a
folder, and which files hold bytes that were not synced. A power cut undoes the newest changes, as
many as chance has it: a journal keeps them in order, and any fsync writes all of it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR, S_ISREG

_CALLS = "close", "mkdir", "open", "rename", "rmdir", "stat", "unlink", "utime"
REAL = {name: getattr(os, name) for name in _CALLS}
"""As they are while the simulation stands in for them."""


class Disk:
    """The one of a run: its folder, and another for what may have to come back."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "run")
        self._shadow = folder / "shadow"
        os.mkdir(self.folder)  # noqa: PTH102 - as below: these calls are replaced for the product
        os.mkdir(self._shadow)  # noqa: PTH102
        self._num_kept = 0
        self._undo: list[Callable[[], None]] = []
        self._unsynced: dict[int, str] = {}
        self._reserved: set[int] = set()
        self.is_full = False
        self.usual_sync_seconds = self.sync_seconds = 0.01
        self.capacity: int | None = None
        """Bytes of all files together."""

    @property
    def is_bad(self) -> bool:
        """Whether who writes may fail, or take long."""
        return self.is_full or self.sync_seconds > 1.0

    def mend(self) -> None:
        """There is room again, and it is as fast as before."""
        self.is_full = False
        self.sync_seconds = self.usual_sync_seconds

    def check_room(self, path: str, num_bytes: int = 0) -> None:
        """Raise `OSError` if it does not take a new name, or so many bytes more."""
        is_over = num_bytes > 0 and self.capacity is not None
        if self.is_full or (is_over and self._used_bytes() + num_bytes > (self.capacity or 0)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _used_bytes(self) -> int:
        files = (os.path.join(at, name) for at, _, names in os.walk(self.folder) for name in names)  # noqa: PTH118
        return sum(REAL["stat"](file, follow_symlinks=False).st_size for file in files)

    def has(self, path: str) -> bool:
        return path.startswith(self.folder)

    def made(self, path: str, *, is_folder: bool = False) -> None:
        """A name is new."""
        self._undo.append(lambda: _ignoring(REAL["rmdir" if is_folder else "unlink"], path))

    def wrote(self, number: int, path: str) -> None:
        """Bytes of the file with this inode number."""
        self._unsynced[number] = path

    def reserved(self, number: int) -> None:
        """The file has its size before its bytes."""
        self._reserved.add(number)

    def synced(self, number: int) -> None:
        """fsync of a file or a folder."""
        self._unsynced.pop(number, None)
        self._undo.clear()
        self._num_kept = 0

    def removes(self, path: str, folder: int | None) -> Callable[[], None]:
        """Call it before a name goes; returns what brings it back."""
        found = REAL["stat"](path, dir_fd=folder, follow_symlinks=False)
        if S_ISDIR(found.st_mode):
            return lambda: _ignoring(REAL["mkdir"], path)
        if not S_ISREG(found.st_mode):
            target = os.readlink(path, dir_fd=folder)
            return lambda: _ignoring(os.symlink, target, path)
        self._num_kept += 1
        kept = str(self._shadow / f"{found.st_ino}-{self._num_kept}")
        _ignoring(REAL["unlink"], kept)
        os.link(path, kept, src_dir_fd=folder, follow_symlinks=False)
        return lambda: _ignoring(os.link, kept, path)

    def note(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def renamed(self, source: str, target: str, replaced: Callable[[], None] | None) -> None:
        def undo() -> None:
            _ignoring(REAL["rename"], target, source)
            if replaced is not None:
                replaced()

        self._undo.append(undo)

    def lose_power(self, chance: random.Random) -> int:
        """Returns how many changes of folders were lost."""
        num_lost = chance.randint(0, len(self._undo))
        for number, path in self._unsynced.items():
            self._cut(number, path, chance)
        for _ in range(num_lost):
            self._undo.pop()()
        self._undo.clear()
        self._unsynced.clear()
        return num_lost

    def _cut(self, number: int, path: str, chance: random.Random) -> None:
        """Of bytes that were not synced some are there."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                there = os.path.join(folder, name)  # noqa: PTH118
                if REAL["stat"](there, follow_symlinks=False).st_ino == number:
                    size = os.path.getsize(there)  # noqa: PTH202
                    os.truncate(there, chance.randint(0, size))
                    if number in self._reserved:
                        os.truncate(there, size)
                    return

    def damage(self, path: Path, chance: random.Random) -> None:
        """Bytes of a file turn into others."""
        content = bytearray(path.read_bytes())
        place = chance.randrange(len(content))
        content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


def _ignoring(call: Callable[..., object], *arguments: object) -> None:
    """What is to be undone may have been undone with something else."""
    try:
        call(*arguments)
    except OSError:
        return
