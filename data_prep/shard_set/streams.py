"""Standard output and error that never make a command fail, whatever they are connected to."""

from __future__ import annotations

import errno
import io
import logging
import numbers
import os
import re
import select
import sys
from typing import Any, TextIO

from data_prep.shard_set.files import printable

_LAST_STANDARD = 2

_COMMANDS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, line ends and tabs aside, and what turns the direction of text."""


class _Sink(io.FileIO):
    """A standard stream; after a failed write, all further output is discarded."""

    failure: OSError | None = None

    def __init__(self, handle: int) -> None:
        super().__init__(handle, "w", closefd=False)

    def write(self, content: Any, /) -> int:
        try:
            while (written := super().write(content)) is None:  # one that does not block is full
                select.select([], [self], [])
            return written
        except OSError as error:  # a full disk, a pipe whose reader has left, a lost terminal
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(content).nbytes


class _Shown(io.TextIOWrapper):
    """Text for people: names in it, of files, hosts or classes, give no orders to a terminal."""

    def write(self, text: str, /) -> int:
        return super().write(_COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text))


class _Record(logging.LogRecord):
    """A message in which names, of files, hosts or classes, begin no other line."""

    def getMessage(self) -> str:
        if isinstance(self.args, tuple):
            self.args = tuple(
                each if isinstance(each, numbers.Number) else printable(str(each))
                for each in self.args
            )
        return super().getMessage()


def say(*lines: str, stream: TextIO | None = None) -> None:
    """Write lines to standard output, or to `stream`, at once.

    A name in them, of a file, host or class, begins no other line and gives no orders to a
    terminal: all that people read of a command goes through here, or through `logging`.
    """
    stream = stream or sys.stdout
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


def open_streams() -> None:
    """Make the standard streams of this process ones that can always be written to.

    A closed one (`>&-`) is opened to nowhere: its number would otherwise go to the next file that
    is opened. What an encoding lacks is written as an escape, and so are a terminal's commands on
    standard error and on a terminal. No name in a message of `logging` begins another line. The
    first thing that a command does.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:  # the lowest that is free
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout = _reopened(1, sys.stdout)
    sys.stderr = _reopened(2, sys.stderr)
    logging.setLogRecordFactory(_Record)


def _reopened(handle: int, before: TextIO | None) -> TextIO:
    sink, encoding, is_by_line, is_unbuffered = _Sink(handle), "utf-8", handle == 2, False
    if isinstance(before, io.TextIOWrapper):
        before.flush()
        encoding, is_by_line = before.encoding, before.line_buffering
        is_unbuffered = before.write_through  # python -u
    kind = _Shown if handle == 2 or os.isatty(handle) else io.TextIOWrapper
    return kind(
        sink if is_unbuffered else io.BufferedWriter(sink),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=is_by_line,
        write_through=is_unbuffered,
    )


def exit_code_after_flush(code: int) -> int:
    """The exit code of a command that has done its work: `code`, or 1 if its output was lost.

    A sentence then says so. If the reader of a pipe has left, as `head` does, nothing is lost.
    """
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    sink = getattr(buffer, "raw", buffer)
    failure = sink.failure if isinstance(sink, _Sink) else None
    if failure is None or failure.errno == errno.EPIPE:
        return code
    say(f"error: standard output could not be written: {failure.strerror}", stream=sys.stderr)
    return code or 1
