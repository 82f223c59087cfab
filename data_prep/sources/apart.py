"""Files read in processes of their own, for native libraries that a damaged file can end.

pyarrow and scipy abort, or write where they must not, at some of the damage that a file can have,
and no exception tells of that. Here it ends a process that reads this one file, and the file is
named. Such a process has a bound on its memory, too.
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import re
import resource
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TypeVar

from data_prep.sources.source import SourceError

T = TypeVar("T")

_MOST_BYTES, _MOST_RATIO = 4 << 30, 20
"""Of memory that reading may take: so much, and so many times the size of the file."""
_FAREWELL_SECONDS = 5.0
"""In which a process that is no longer needed removes what it has half written."""


def each_apart(
    read: Callable[[Path], T], paths: Iterable[Path], num_processes: int = 1
) -> Generator[tuple[Path, T]]:
    """Yield each path, and what `read` returns of it, in the order in which they are done.

    So many processes read at the same time; with one the order is that of the paths. They are
    forked, so `read` may be any function, and import before this what it needs: that is done once.
    What `read` returns and raises must be picklable.
    Raises `SourceError`, which names the path, if its process ends or runs out of memory, and
    whatever `read` raises. What the others are reading is given up then.
    """
    waiting = iter(paths)
    at_work: dict[Connection, tuple[ForkProcess, Path]] = {}
    try:
        while True:
            for path in itertools.islice(waiting, num_processes - len(at_work)):
                end, process = _start(read, path)
                at_work[end] = process, path
            if not at_work:
                return
            end = next(end for end in wait(list(at_work)) if isinstance(end, Connection))
            process, path = at_work.pop(end)
            result: T = _answer(end, process, path)
            yield path, result
    finally:
        for process, _ in at_work.values():
            process.terminate()
        for end, (process, _) in at_work.items():
            process.join(_FAREWELL_SECONDS)
            process.kill()
            process.join()
            end.close()


def _start(read: Callable[[Path], T], path: Path) -> tuple[Connection, ForkProcess]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(read, path, sender))
    process.start()
    sender.close()  # so that its end is the end of what can be received
    return receiver, process


def _read(read: Callable[[Path], T], path: Path, sender: Connection) -> None:
    """In the process of its own; what it says when it ends is for nobody."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        most = max(_MOST_BYTES, _MOST_RATIO * path.stat().st_size)
        _bound_memory(most)
        try:
            answer: tuple[bool, T | Exception] = True, read(path)
        except MemoryError:
            raise SourceError(
                f"{path} takes more than {most:,} bytes of memory to read: it is damaged, or made "
                "to fill memory; check where it is from"
            ) from None
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # of a defect it says where
        answer = False, error
    sender.send(answer)


def _bound_memory(num_bytes: int) -> None:
    """Let this process have at most so many more bytes of its own."""
    (used,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(used) * 1024 + num_bytes
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _answer(end: Connection, process: ForkProcess, path: Path) -> Any:
    """What the process has sent; raises what `read` raised."""
    try:
        with end:
            is_result, found = end.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise SourceError(
            f"{path} ended the process that was reading it ({how}): it is damaged, so copy it again"
        ) from None
    process.join()
    if not is_result:
        raise found
    return found
