"""Runs a fuzzer in a process of its own, with bounds on its memory and on the time of a case."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.fuzz.harness import Harness, check_sentence
from tests.fuzz.mutation import damaged

_ROOT = Path(__file__).resolve().parents[2]
_PRODUCT = tuple(f"{_ROOT / package}/" for package in ("data_prep", "launch", "pipeline"))
_CASE_SECONDS = 20
"""Of the processor, which a case may take; most take a thousandth of one."""
_MOST_SECONDS = 600
"""In which a case has to end where it waits for other processes, however busy the machine is."""
_MORE_BYTES = 1 << 30
"""That reading may add to the address space."""
_MOST_KEPT = 2000
"""Cases that joined the corpus."""
_DETAILS = re.compile(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|[-\d]+|/\S+")
"""What differs between two errors of one kind."""


class Outcome(NamedTuple):
    """How many inputs there were, and how many of them were read without an error."""

    inputs: int
    read: int
    kinds: int
    """Of refusals, by their words."""
    reached: Sequence[str] = ()
    """`MODULE:FUNCTION` of the product that reading the whole files called."""


class FoundError(Exception):
    """A fuzzer found something: what, and the input."""


class _TooSlowError(BaseException):
    """Reading takes too long."""


def fuzz(name: str, seed: int, seconds: float, folder: Path, most: float = math.inf) -> Outcome:
    """Run the harness of that name until it has used so much of the processor, or so many inputs.

    Raises `FoundError`. The input is then in the file `input` of the folder.
    """
    # Without arenas of their own, the threads of a reader add little to the address space.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.child", *map(str, (name, seed, seconds, folder, most))],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        content = (folder / "input").read_bytes() if (folder / "input").exists() else b""
        raise FoundError(
            f"{name}, seed {seed}, exit code {done.returncode}: {done.stderr[-4000:]}\n"
            f"input of {len(content):,} bytes: {content[:4000].hex()}"
        )
    return Outcome(*json.loads(done.stdout.splitlines()[-1]))


def run_harness(
    harness: Harness, seed: int, seconds: float, folder: Path, most: float = math.inf
) -> Outcome:
    """The same in this process; any exception is a finding."""
    current = folder / "input"
    with tempfile.TemporaryDirectory(dir=folder, prefix="files-") as files:
        target = harness.prepare(Path(files))
        _bound()
        with noting_calls(folder / "reached"):
            for content in target.corpus:
                current.write_bytes(content)
                target.read(content)
        chance, corpus = random.Random(seed), list(target.corpus)
        inputs, num_read, kinds = 0, 0, set[str]()
        start = _seconds_used()
        while _seconds_used() - start < seconds and inputs < most:
            content = damaged(chance, corpus, harness.changes)
            current.write_bytes(content)
            signal.setitimer(signal.ITIMER_PROF, _CASE_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
            try:
                target.read(content)
                num_read += 1
            except harness.errors as error:
                if type(error) not in harness.errors:
                    raise
                check_sentence(error)
                kind = _DETAILS.sub("…", str(error))
                if kind not in kinds and len(corpus) < _MOST_KEPT:  # it got somewhere new
                    corpus.append(content)
                kinds.add(kind)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            inputs += 1
    reached = sorted({*(folder / "reached").read_text().splitlines()})
    return Outcome(inputs, num_read, len(kinds), reached)


def _seconds_used() -> float:
    """Of the processor, with the processes that have ended."""
    return sum(os.times()[:4])


@contextlib.contextmanager
def noting_calls(path: Path) -> Iterator[None]:
    """Append each function of the product that the block calls, in forked processes, too."""
    seen: set[int] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and id(code) not in seen:
            seen.add(id(code))
            if code.co_filename.startswith(_PRODUCT):
                module = Path(code.co_filename).relative_to(_ROOT).with_suffix("")
                os.write(handle, f"{'.'.join(module.parts)}:{code.co_qualname}\n".encode())

    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        os.close(handle)


def _bound() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_BYTES,) * 2)
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, _stop)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TooSlowError(f"a case takes more than {_CASE_SECONDS} s")
