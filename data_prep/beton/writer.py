"""Has ffcv's own writer write a `.beton`, and watches it: left alone it can wait for ever.

ffcv waits for its worker processes without looking at them. So a timer interrupts the wait, looks
whether the worker lives and gets on, and raises if not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any, TextIO

from data_prep.beton.samples import BetonImage, ShardSamples
from data_prep.convert.output import ConversionError

_POLL_SECONDS = 0.2
_RAISE_AGAIN_SECONDS = 1.0  # long enough for what was raised to get out of ffcv
_KILL_SECONDS = 10.0  # one that waits for a disk cannot be killed
_PAGE_BYTES = 1 << 23
"""Of a page, unless an image is larger: ffcv's default."""
_MAX_PAGE_BYTES = 1 << 30  # the power of two below what Linux writes at once; ffcv writes once
_INSTALL = (
    "'make ffcv' installs it, as does on Debian 'apt install g++ pkg-config python3-dev "
    "libopencv-dev libturbojpeg0-dev', then 'pip install ffcv==1.0.2'"
)


class FfcvWriter:
    """ffcv's writer of the samples, in their order: the same samples give the same bytes.

    Takes seconds to make. Raises `ConversionError` if ffcv is not there or an image is too large.
    """

    def __init__(self, samples: ShardSamples) -> None:
        self._samples = samples
        self._page_bytes = choose_page_bytes(int(samples.image_bytes.max()))
        self._make_writer, image_field, label_field = _import_ffcv()
        # On the object: when reading, ffcv would not know the type of a subclass.
        image_field.encode = _encode
        self._fields = {"image": image_field, "label": label_field}

    def write(self, path: Path, show: Callable[[int], None], stall_seconds: float) -> None:
        """Write to `path`; `show` is told the number of samples done, several times a second.

        Must run in the main thread. Raises `ConversionError` if the worker fails or dies, or
        nothing is done for `stall_seconds`, and `OSError` if the tables cannot be written. What
        is at `path` then is of no use.
        """
        # One worker copies as fast as disks write; with more the bytes depend on who is faster.
        writer = self._make_writer(
            str(path), self._fields, page_size=self._page_bytes, num_workers=1
        )
        work = _Work(self._samples)
        with tempfile.TemporaryFile("w+") as errors:
            watch = _Watch(work, errors, show, stall_seconds)
            try:
                with contextlib.redirect_stderr(errors):
                    _run(watch, lambda: writer.from_indexed_dataset(work))
            finally:
                work.end_worker()
                _free_memory(writer)


def choose_page_bytes(image_bytes: int) -> int:
    """The size of pages, a power of two, that holds the largest image: ffcv splits none."""
    page_bytes = max(_PAGE_BYTES, 1 << (image_bytes - 1).bit_length())
    if page_bytes > _MAX_PAGE_BYTES:
        raise ConversionError(
            f"the largest image has {image_bytes} bytes; a .beton holds at most {_MAX_PAGE_BYTES} "
            "bytes an image: convert the data with --size N"
        )
    return page_bytes


def _import_ffcv() -> tuple[Callable[..., Any], Any, Any]:
    """ffcv's writer, and new fields for images and labels."""
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
    except ImportError as error:
        raise ConversionError(
            f"writing a .beton needs ffcv, which does not load ({error}): {_INSTALL}"
        ) from None
    return DatasetWriter, RGBImageField(), IntField()


def _encode(row: Any, image: BetonImage, allocate: Callable[[int], tuple[int, Any]]) -> None:
    """Store the image's bytes as they are; ffcv's own would encode pixels anew."""
    row["mode"], row["height"], row["width"] = image.mode, image.height, image.width
    row["data_ptr"], room = allocate(len(image.content))
    room[:] = memoryview(image.content)


class _Work:
    """The samples as the worker process asks for them."""

    def __init__(self, samples: ShardSamples) -> None:
        register_after_fork(self, _begin_worker)  # for as long as this object lives
        self._samples = samples
        # Without locks, which a dying worker could leave locked.
        self._num_done = RawValue("Q")
        self._worker_pid = RawValue("q")
        self._is_over = RawValue("b")
        self._others = multiprocessing.active_children()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def num_done(self) -> int:
        return int(self._num_done.value)

    def __getitem__(self, number: int) -> tuple[BetonImage, int]:
        sample = self._samples[int(number)]
        self._num_done.value += 1
        return sample

    def begin_worker(self) -> None:
        """Let this worker process be stopped by its parent alone, and end when the parent does.

        From its very start: before its first sample it waits for work, which no dead parent sends.
        """
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop_signal, signal.SIG_IGN)  # the parent gets it too
        self._worker_pid.value = os.getpid()
        if self._is_over.value:
            os._exit(1)
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def end_worker(self) -> None:
        """Kill the worker, which has nothing left to do.

        One that the parent was stopped in the middle of starting is unknown to `multiprocessing`:
        it gave its number, or reads that all is over before it touches the file. And one that
        hangs from its very start gave no number.
        """
        self._is_over.value = 1
        if pid := self._worker_pid.value:
            _kill(pid)
        for child in multiprocessing.active_children():  # which waits for those that ended
            if child not in self._others:
                child.kill()
                child.join(_KILL_SECONDS)
        if pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _kill(pid: int) -> None:
    """End a process that nobody waited for yet."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], _KILL_SECONDS)
    finally:
        os.close(process)


def _begin_worker(work: _Work) -> None:
    work.begin_worker()


class _Watch:
    """Looks after the worker while ffcv waits for it: shows progress, raises on trouble.

    Again at every look: Python and ffcv have places where an exception that comes from a signal's
    handler is lost.
    """

    def __init__(
        self, work: _Work, errors: TextIO, show: Callable[[int], None], stall_seconds: float
    ) -> None:
        self._work = work
        self._errors = errors
        self._show = show
        self._stall_seconds = stall_seconds
        self._num_done = 0
        self._since = time.monotonic()
        self.is_interrupted = False

    def look(self) -> None:
        """Raises `KeyboardInterrupt` if there was one, and `ConversionError`."""
        if self.is_interrupted:
            raise KeyboardInterrupt
        self._check_worker()
        num_done, now = self._work.num_done, time.monotonic()
        self._show(num_done)
        if num_done != self._num_done:
            self._num_done, self._since = num_done, now
        elif now - self._since > self._stall_seconds:
            raise ConversionError(
                f"ffcv's writer has done nothing for {self._stall_seconds:g} s at sample "
                f"{num_done} of {len(self._work)}, so it was stopped: see whether the disks hang, "
                "and run the same command again"
            )

    def _check_worker(self) -> None:
        try:  # whichever ended; it stays to be waited for
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # not started yet
            return
        if ended is None or ended.si_status == 0:
            return
        if ended.si_code == os.CLD_EXITED:
            raise ConversionError(
                f"ffcv's writer failed: {self._last_error()}; once that is mended, run the same "
                "command again"
            )
        raise ConversionError(
            f"the worker process of ffcv's writer died (signal {ended.si_status}); run the same "
            "command again, and see that there is memory, in /dev/shm too"
        )

    def _last_error(self) -> str:
        """What the worker's exception said, from the traceback that it printed."""
        self._errors.seek(0)
        found = re.findall(r"^Traceback .*?\n(?! )([^\r\n]+)", self._errors.read(), re.M | re.S)
        if not found:
            return "no reason was given"
        text = str(found[-1]).partition(": ")[2] or str(found[-1])
        return re.sub(r"^\[Errno \d+\] ", "", text)


def _run(watch: _Watch, write: Callable[[], None]) -> None:
    """Call `write`, watched; what it had at hand when an exception stopped it is freed here.

    ffcv's progress bar, if it is stopped while it is made, complains when it is freed.
    """
    try:
        with _looking(watch):
            write()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


@contextlib.contextmanager
def _looking(watch: _Watch) -> Iterator[None]:
    """Let the watch look several times a second, whatever the main thread does."""
    parent = os.getpid()

    def interrupt(*_: object) -> None:
        if os.getpid() != parent:  # a worker that is about to ignore it
            return
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        watch.is_interrupted = True
        raise KeyboardInterrupt

    def look(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_SECONDS)
        watch.look()
        signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)

    handlers: dict[int, Callable[..., object]] = {
        number: interrupt
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is signal.default_int_handler
    }
    handlers[signal.SIGALRM] = look
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)
    try:
        yield
        watch.look()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_memory(writer: Any) -> None:
    """Free the memory that was shared with the worker."""
    memory = getattr(writer, "metadata_sm", None)
    if isinstance(memory, SharedMemory):  # ffcv puts a number there before the memory
        with contextlib.suppress(FileNotFoundError):  # freed already
            memory.close()
            memory.unlink()
