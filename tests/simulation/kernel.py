"""The operating system that simulated processes see, in the place of the real one.

While it is entered, the doors of the standard library to the system (`os`, `time`, `signal`, `io`)
lead here for the code of simulated processes, and to the real system for everybody else. So the
product's code runs as it is. A call that changes something may be the last of its process.

Longer than 250 lines: all calls that are stood in for are here.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.simulation.disk import REAL, Disk
from tests.simulation.tasks import Condition, Killed, Process, Tasks

EPOCH = 1_700_000_000.0
"""Unix time at the begin of a simulation."""

_LEAST_SLEEP_SECONDS = 0.25
"""Who looks more often for a lock or a file looks as often as that."""
_LEAST_WATCH_SECONDS = 1.0
"""The same of who looks after a child."""

_Handler = Callable[[int, None], object]


@dataclass(eq=False)
class Host:
    """A machine, with a clock of its own."""

    name: str
    is_down: bool = False
    is_cut_off: bool = False
    """From all other hosts, by the network."""
    clock_error: float = 0.0


@dataclass(eq=False, kw_only=True)
class SimProcess(Process):
    """A process of a host."""

    host: Host
    pid: int
    parent: int
    environment: dict[str, str] = field(default_factory=dict)
    handlers: dict[int, Any] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    """Open ones, with their paths."""
    calls_left: int | None = None
    """After so many more calls that change something it is killed."""
    is_faulty: bool = False
    """A fault has hit it."""
    is_stopped: bool = False
    """By a signal: not even its threads outside of Python run."""
    code: int | None = None
    """As the parent sees it: negative if it was killed by a signal."""
    program: Any = None
    """What runs in it, for those who stand in for a part of that."""


def _nothing(_process: SimProcess, _text: str) -> None:
    return


class Kernel:
    """Processes, their clocks, their signals and their disk."""

    def __init__(self, tasks: Tasks, disk: Disk, say: Callable[[str], None]) -> None:
        self.tasks = tasks
        self.disk = disk
        self._say = say
        self.ended = Condition(tasks)
        """Some process has ended."""
        self.listeners: list[Callable[[SimProcess], None]] = []
        """Called when one has."""
        self.on_error: Callable[[SimProcess, str], None] = _nothing
        """Called with what a process writes to standard error by the system's call."""
        self.on_change: Callable[[str], None] = lambda _: None
        """Called after a name of the disk is gone or new, or a file of that path has grown."""
        self._pids = itertools.count(1000)
        self._processes: dict[int, SimProcess] = {}
        self._forked: list[SimProcess] = []
        """These end with their parents."""
        self._children: dict[int, SimProcess] = {}
        """By the file that stands for each."""

    def new_process(self, name: str, host: Host, parent: int = 1) -> SimProcess:
        process = SimProcess(name=name, host=host, pid=next(self._pids), parent=parent)
        self._processes[process.pid] = process
        return process

    def running(self) -> SimProcess:
        """The process whose code runs."""
        process = self.tasks.running().process
        assert isinstance(process, SimProcess)
        return process

    def fork(self, name: str, body: Callable[[], int]) -> SimProcess:
        """A child of the one that runs, which ends with it."""
        parent = self.running()
        child = self.new_process(name, parent.host, parent.pid)
        child.environment, child.program = parent.environment, parent.program
        self._forked.append(child)
        self.run(child, body)
        return child

    def run(self, process: SimProcess, main: Callable[[], int]) -> None:
        """Start its main thread; what it returns is its exit code."""

        def body() -> None:
            code = main()
            self.end(process, code)

        self.tasks.start(process, body)

    def end(self, process: SimProcess, code: int) -> None:
        """End it, by itself or by a signal; raises `Killed` if it is the one that runs."""
        self._end(process, code)
        self.tasks.check_alive()

    def _end(self, process: SimProcess, code: int) -> None:
        if not process.is_dead:
            process.code = code
            self.tasks.kill(process)
            files, process.files = process.files, {}
            for number in files:
                with contextlib.suppress(OSError):
                    REAL["close"](number)
            for listener in self.listeners:
                listener(process)
            self.ended.notify()
            for child in self._forked:
                if child.parent == process.pid:
                    self._end(child, -signal.SIGKILL)

    def send(self, process: SimProcess, number: int) -> None:
        """A signal; Python's handlers run in the main thread as soon as that runs at all."""
        if process.is_dead:
            return
        if number == signal.SIGKILL:
            self.end(process, -number)
        elif number == signal.SIGSTOP:
            process.is_stopped = True
            self.tasks.freeze(process)
        elif number == signal.SIGCONT:
            process.is_stopped = False
            self.tasks.thaw(process)
        elif process.is_frozen:
            return  # it is heeded if it ever runs again, and none of them does before it is killed
        else:
            handler = process.handlers.get(number, signal.SIG_DFL)
            if handler == signal.SIG_DFL:
                self.end(process, -number)
            elif handler != signal.SIG_IGN:
                self.tasks.start(process, lambda: self._handle(process, handler, number))

    def _handle(self, process: SimProcess, handler: _Handler, number: int) -> None:
        try:
            handler(number, None)
        except KeyboardInterrupt as interrupt:
            process.tasks[0].interrupt(interrupt)

    # What follows stands in for the system's calls.

    def _me(self) -> SimProcess | None:
        """The simulated process whose code runs; None: this is another thread."""
        task = self.tasks.current
        if task is None or task.thread is not threading.current_thread():
            return None
        return task.process if isinstance(task.process, SimProcess) else None

    def _changes(self, path: str | None) -> bool:
        """Before a call that changes something; whether it concerns the simulated disk."""
        process = self._me()
        if process is None or path is None or not self.disk.has(path):
            return False
        if process.is_dead:
            raise Killed
        if process.calls_left is not None:
            process.calls_left -= 1
            if process.calls_left < 0:
                self._say(f"{process.name} is killed at a call for {path[len(self.disk.folder) :]}")
                self.end(process, -signal.SIGKILL)
        return True

    def _path(self, path: Any, folder: int | None = None) -> str | None:
        """Its absolute name, also if it is said beside an open folder."""
        process = self._me()
        if process is None or isinstance(path, int):
            return None
        text: str = os.fspath(path)
        if folder is not None and folder in process.files:
            return f"{process.files[folder]}/{text}"
        return text

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Until the block ends simulated processes see this system."""
        with contextlib.ExitStack() as stack:
            for module, name, stand_in in self._stand_ins():
                real = getattr(module, name)
                stack.enter_context(mock.patch.object(module, name, stand_in(real)))
            stack.enter_context(mock.patch.dict(os.environ))
            self.tasks.on_turn = self._set_environment
            yield

    def _set_environment(self, process: Process) -> None:
        if isinstance(process, SimProcess):
            os.environ.update(process.environment)

    def _stand_ins(self) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
        yield from self._of_clock()
        yield from self._of_process()
        yield os, "mkdir", self._mkdir
        yield os, "rename", self._rename
        yield os, "replace", self._rename
        yield os, "unlink", self._unlink
        yield os, "rmdir", self._unlink
        yield os, "symlink", self._symlink
        yield os, "open", self._open
        yield os, "close", self._close
        yield os, "write", self._write
        yield os, "fsync", self._fsync
        yield io, "open", self._open_file
        yield os, "utime", self._utime
        yield os, "dup", self._dup
        yield os, "posix_fallocate", self._reserve

    def _of_clock(self) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
        def now(process: SimProcess) -> float:
            return EPOCH + self.tasks.now + process.host.clock_error

        yield time, "monotonic", self._instead(lambda _: self.tasks.now)
        yield time, "perf_counter", self._instead(lambda _: self.tasks.now)
        yield time, "time", self._instead(now)
        yield time, "time_ns", self._instead(lambda process: int(now(process) * 1e9))
        yield (
            time,
            "sleep",
            self._instead(lambda _, seconds: self.tasks.sleep(max(seconds, _LEAST_SLEEP_SECONDS))),
        )

    def _of_process(self) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
        def on_signal(process: SimProcess, number: int, handler: Any) -> Any:
            before = process.handlers.get(number, signal.SIG_DFL)
            process.handlers[number] = handler
            return before

        def handler_of(process: SimProcess, number: int) -> Any:
            return process.handlers.get(number, signal.SIG_DFL)

        yield signal, "signal", self._instead(on_signal)
        yield (
            signal,
            "getsignal",
            self._instead(handler_of),
        )
        yield os, "kill", self._instead(lambda _, pid, number: self._kill(pid, number))
        yield os, "waitpid", self._instead(lambda _, pid, __: (pid, self._status_of(pid)))
        yield os, "pidfd_open", self._instead(self._open_child)
        yield signal, "pthread_sigmask", self._instead(lambda *_: set())
        yield os, "getppid", self._instead(lambda process: process.parent)
        yield os, "getpid", self._instead(lambda process: process.pid)
        yield os, "_exit", self._instead(lambda process, code: self.end(process, int(code)))
        yield socket, "gethostname", self._instead(lambda process: process.host.name)

    def _kill(self, pid: int, number: int) -> None:
        self.send(self._processes[pid], number)

    def _status_of(self, pid: int) -> int:
        code = self._processes[pid].code
        assert code is not None, "it has ended"
        return code << 8 if code >= 0 else -code

    def _open_child(self, process: SimProcess, pid: int) -> int:
        number = REAL["open"](os.devnull, os.O_RDONLY)
        process.files[number] = ""
        self._children[number] = self._processes[pid]
        return int(number)

    def wait_for_child(
        self, files: list[int], _writes: object, _others: object, seconds: float
    ) -> tuple[list[int], list[int], list[int]]:
        """`select.select` of what stands for a child."""
        child = self._children[files[0]]
        is_there = self.ended.wait(lambda: child.is_dead, max(seconds, _LEAST_WATCH_SECONDS))
        return files if is_there else [], [], []

    def _instead(self, call: Callable[..., Any]) -> Callable[[Any], Any]:
        def stand_in(real: Any) -> Any:
            def either(*args: Any) -> Any:
                process = self._me()
                if process is None:
                    return real(*args)
                self.tasks.check_alive()  # nothing that cleans up runs in a process that was killed
                return call(process, *args)

            return either

        return stand_in

    def _mkdir(self, real: Any) -> Any:
        def mkdir(path: Any, *args: Any, **options: Any) -> None:
            there = self._path(path)
            is_ours = self._changes(there)
            if is_ours and there is not None:
                self.disk.check_room(there)
            real(path, *args, **options)
            if is_ours and there is not None:
                self.disk.made(there, is_folder=True)

        return mkdir

    def _rename(self, real: Any) -> Any:
        def rename(source: Any, target: Any, **options: Any) -> None:
            there, then = self._path(source), self._path(target)
            is_ours = self._changes(there)
            replaced = None
            if is_ours and then is not None and os.path.lexists(then):
                replaced = self.disk.removes(then, None)
            real(source, target, **options)
            if is_ours and there is not None and then is not None:
                self.disk.renamed(there, then, replaced)
                self.on_change(then)

        return rename

    def _unlink(self, real: Any) -> Any:
        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            there = self._path(path, dir_fd)
            undo = None
            if self._changes(there) and there is not None and os.path.lexists(there):
                undo = self.disk.removes(there, None)
            real(path, dir_fd=dir_fd)
            if undo is not None and there is not None:
                self.disk.note(undo)
                self.on_change(there)

        return unlink

    def _symlink(self, real: Any) -> Any:
        def symlink(source: Any, target: Any, *args: Any, **options: Any) -> None:
            there = self._path(target)
            is_ours = self._changes(there)
            if is_ours and there is not None:
                self.disk.check_room(there)
            real(source, target, *args, **options)
            if is_ours and there is not None:
                self.disk.made(there)

        return symlink

    def _open(self, real: Any) -> Any:
        def open_(path: Any, flags: int, *args: Any, dir_fd: int | None = None) -> int:
            there, process = self._path(path, dir_fd), self._me()
            is_new = bool(flags & os.O_CREAT) and there is not None and not os.path.lexists(there)
            if is_new and self._changes(there) and there is not None:
                self.disk.check_room(there)
            number: int = real(path, flags, *args, dir_fd=dir_fd)
            if process is not None and there is not None and self.disk.has(there):
                process.files[number] = there
                if is_new:
                    self.disk.made(there)
                    self.stamp(number)
            return number

        return open_

    def _close(self, real: Any) -> Any:
        def close(number: int) -> None:
            process = self._me()
            if process is not None:
                if process.is_dead and number not in process.files:
                    return  # closed when it died
                process.files.pop(number, None)
            real(number)

        return close

    def stamp(self, file: Any) -> None:
        """Give a path or an open file the time of the file system, whose clock is right."""
        now = EPOCH + self.tasks.now
        REAL["utime"](file, (now, now))

    def _write(self, real: Any) -> Any:
        def write(number: int, content: bytes) -> int:
            process = self._me()
            if process is None:
                return int(real(number, content))
            if number == 2:
                self._say(f"{process.name}: {content.decode().strip()}")
                self.on_error(process, content.decode())
                return len(content)
            there = process.files.get(number)
            if self._changes(there) and there is not None:
                self.disk.check_room(there)
                self.disk.wrote(os.fstat(number).st_ino, there)
            num_written = int(real(number, content))
            if there:
                self.stamp(number)
            return num_written

        return write

    def _fsync(self, real: Any) -> Any:
        def fsync(number: int) -> None:
            process = self._me()
            if process is None:
                real(number)
                return
            self.tasks.check_alive()
            process.is_faulty |= self.disk.is_bad  # it may take longer than the disk stays so
            self.tasks.sleep(self.disk.sync_seconds)
            self.disk.synced(os.fstat(number).st_ino)

        return fsync

    def _utime(self, real: Any) -> Any:
        def utime(path: Any, times: Any = None, **options: Any) -> None:
            self.tasks.check_alive()
            if self._me() is not None and times is None and "ns" not in options:
                self.stamp(path)
            else:
                real(path, times, **options)

        return utime

    def _dup(self, real: Any) -> Any:
        def dup(number: int) -> int:
            self.tasks.check_alive()
            process, twin = self._me(), int(real(number))
            if process is not None:
                process.files[twin] = process.files.get(number, "")
            return twin

        return dup

    def _reserve(self, real: Any) -> Any:
        def posix_fallocate(number: int, offset: int, num_bytes: int) -> None:
            there = self._name_of(number)
            if not self._changes(there) or there is None:
                real(number, offset, num_bytes)
                return
            self.tasks.sleep(self.disk.usual_sync_seconds)
            found = os.fstat(number)
            self.disk.check_room(there, offset + num_bytes - found.st_size)
            real(number, offset, num_bytes)
            self.disk.reserved(found.st_ino)
            self.on_change(there)

        return posix_fallocate

    def _name_of(self, number: int) -> str | None:
        """Where a file is that a process has open."""
        return None if self._me() is None else str(Path(f"/proc/self/fd/{number}").readlink())

    def adopt(self, number: int, mode: str) -> io.BufferedRandom:
        """What stands for `open` of a file that this process has open already."""
        process, there = self._me(), self._name_of(number)
        assert process is not None
        assert there is not None
        process.files.pop(number, None)  # what is made here closes it
        return io.BufferedRandom(_RawFile(self, there, mode.replace("b", ""), number))

    def _open_file(self, real: Any) -> Any:
        def open_file(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            there = self._path(path)
            writes = set(mode) & set("wxa+")
            if not writes or not self._changes(there) or there is None:
                return real(path, mode, *args, **options)
            is_new = not os.path.lexists(there)
            if is_new:
                self.disk.check_room(there)
            raw = _RawFile(self, there, mode.replace("b", "").replace("t", ""))
            raw.stamp()
            if is_new:
                self.disk.made(there)
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, write_through=True)

        return open_file

    def may_write(self, path: str, num_more: int) -> bool:
        """Before bytes are written, so many more than the file has; False: its process is dead."""
        process = self._me()
        if process is not None and process.is_dead:
            return False
        self._changes(path)
        if num_more > 0:
            self.disk.check_room(path, num_more)
        return True


class _RawFile(io.FileIO):
    """An open file whose writes may fail."""

    def __init__(self, kernel: Kernel, path: str, mode: str, number: int | None = None) -> None:
        super().__init__(path if number is None else number, mode)
        self._kernel, self._path = kernel, path

    def write(self, content: Any, /) -> int:
        end = max(self.tell(), 0) + len(content)
        if not self._kernel.may_write(self._path, end - os.fstat(self.fileno()).st_size):
            return len(content)
        self._kernel.disk.wrote(os.fstat(self.fileno()).st_ino, self._path)
        num_written = super().write(content) or 0
        self.stamp()
        return num_written

    def stamp(self) -> None:
        """Give it the time of the simulated file system."""
        self._kernel.stamp(self.fileno())
