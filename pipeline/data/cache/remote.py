"""Files of a remote shard set, fetched by commands that a deadline can end, and verified.

A shard set's URL is a folder of the web or of an object store, below which the files are found by
their names; or it holds `{}` where the name of the file belongs:

    https://host/imagenet    s3://bucket/imagenet    file:///nfs/imagenet
    https://host/imagenet/{}?token=…    pipe:ssh host cat /data/imagenet/{}

curl fetches http and https, the AWS command line s3, cat what is mounted, a shell what follows
`pipe:`; for all else there is the opener of webdataset. It is not used for the former: it knows no
s3, its curl tries for a minute without a word, and what its shells start outlives a deadline.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

NAME_MARK = "{}"
"""Where the name of a file belongs in a URL that does not simply end with it."""

_BLOCK_BYTES = 1 << 20
_LOOK_SECONDS = 0.1
"""How long a stop may go unheeded."""
_FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
"""Between two attempts."""
_ERROR_BYTES = 2000

_LASTING = frozenset(
    {
        *(f"returned error: {status}" for status in (400, 401, 403, 405, 407, 410, 414, 451)),
        *("curl: (1)", "curl: (3)", "curl: (51)", "curl: (58)", "curl: (60)", "curl: (77)"),
        *("(AccessDenied)", "(403)", "(NoSuchBucket)", "(InvalidAccessKeyId)", "(ExpiredToken)"),
        *("Unable to locate credentials", "Permission denied", "Is a directory"),
        *("command not found", ": not found"),
    }
)
"""What curl, the AWS command line, cat and shells say of what no other attempt mends: a URL or a
protocol that is wrong, certificates, permissions, programs."""
_MISSING = frozenset({"returned error: 404", "(404)", "(NoSuchKey)", "No such file"})
"""What they say of a file that is not there."""

_log = logging.getLogger(__name__)


class FetchError(OSError):
    """A file could not be fetched, in all attempts."""


class FetchStopped(Exception):
    """The fetch was given up because nobody wants the file any more."""


class _Fault(Exception):
    """Why one attempt failed."""

    def __init__(self, what: str, *, is_final: bool = False) -> None:
        super().__init__(what)
        self.is_final = is_final
        """Whether another attempt would meet the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How long a fetch goes on."""

    timeout_seconds: float
    """An attempt in which no byte comes for so long has failed."""
    attempts: int

    @property
    def silence_seconds(self) -> float:
        """The longest time in which a fetch that is not stuck makes no progress."""
        return self.attempts * (self.timeout_seconds + LONGEST_PAUSE_SECONDS)


@dataclass(slots=True)
class FetchCost:
    """What fetching cost so far."""

    num_files: int = 0
    num_bytes: int = 0
    """All that came, with what failed attempts brought."""
    num_retries: int = 0
    seconds: float = 0.0

    def add(self, other: FetchCost) -> None:
        self.num_files += other.num_files
        self.num_bytes += other.num_bytes
        self.num_retries += other.num_retries
        self.seconds += other.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a file must hold."""

    num_bytes: int | None
    """None: any number."""
    sha256: str | None
    """In hexadecimal; None: anything."""


def check_url(url: str) -> None:
    """Raise `ValueError` if the URL leaves open where the name of a file belongs."""
    scheme = url.partition(":")[0]
    if NAME_MARK not in url and (scheme == "pipe" or "?" in url or "#" in url):
        raise ValueError(
            f"data.shards is {url}; expected {NAME_MARK} where the name of a file belongs, as in "
            "pipe:ssh host cat /data/shards/{} or https://host/shards/{}?key=value"
        )


def location_of(url: str, name: str) -> str:
    """Where the file `name` of the shard set at `url` is."""
    quoted = shlex.quote(name) if url.startswith("pipe:") else quote(name)
    if NAME_MARK in url:
        return url.replace(NAME_MARK, quoted)
    return f"{url.rstrip('/')}/{quoted}"


def command_of(location: str, timeout_seconds: float) -> list[str] | None:
    """The command that writes what is at `location` to its output; None: webdataset knows."""
    scheme, _, rest = location.partition(":")
    match scheme:
        case "http" | "https":
            # It has the deadline too, so that it ends if this process is killed.
            silence = str(max(1, round(timeout_seconds)))
            limits = ["--connect-timeout", silence, "--speed-limit", "1", "--speed-time", silence]
            options = ["--fail", "--silent", "--show-error", "--location", "--globoff"]
            return ["curl", *options, "--netrc-optional", *limits, "--url", location]
        case "s3":
            return ["aws", "s3", "cp", "--only-show-errors", location, "-"]
        case "file":
            return ["cat", "--", url2pathname(urlsplit(location).path)]
        case "pipe":
            return ["/bin/sh", "-c", rest]
    return None


def fetch(
    location: str,
    file: BinaryIO,
    content: Content,
    retry_policy: RetryPolicy,
    stop: threading.Event,
    cost: FetchCost,
    check: Callable[[bytes], object] | None = None,
) -> None:
    """Write what is at `location` to the empty or reserved `file`, and verify it.

    What it costs is added to `cost` as it comes. `check` looks at what came where no hash is known,
    and raises `ValueError` if that is damaged.
    Raises `FetchError` after the last attempt, or the first that shows that no other can succeed,
    `FetchStopped` once `stop` is set, and `OSError` if `file` cannot be written.
    """
    begin = time.perf_counter()
    try:
        for attempt in range(1, retry_policy.attempts + 1):
            try:
                _attempt(location, file, content, retry_policy.timeout_seconds, stop, cost)
                _check(file, check)
            except _Fault as fault:
                if attempt == retry_policy.attempts or fault.is_final:
                    raise FetchError(
                        _describe_failure(location, attempt, retry_policy, fault)
                    ) from None
                pause = _pause_seconds(attempt)
                _log.warning("%s: %s; trying again in %.1f s", location, fault, pause)
                cost.num_retries += 1
                if stop.wait(pause):
                    raise FetchStopped(location) from None
            else:
                cost.num_files += 1
                return
    finally:
        cost.seconds += time.perf_counter() - begin


def _describe_failure(
    location: str, attempts: int, retry_policy: RetryPolicy, fault: _Fault
) -> str:
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    more = (
        ""
        if fault.is_final
        else ", or raise data.fetch_attempts or data.fetch_timeout_seconds "
        f"({retry_policy.timeout_seconds:g})"
    )
    return (
        f"{location} could not be fetched in {times}: {fault}; "
        "see that it is there and whole ('python -m data_prep verify SHARDS' where the shard set "
        f"is){more}"
    )


def _pause_seconds(attempt: int) -> float:
    """Twice as long after each attempt; by chance up to half shorter, so that ranks spread out."""
    pause = min(LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
    return pause * random.uniform(0.5, 1)


def _check(file: BinaryIO, check: Callable[[bytes], object] | None) -> None:
    if check is None:
        return
    file.seek(0)
    try:
        check(file.read())
    except ValueError as error:
        raise _Fault(str(error)) from None


def _attempt(
    location: str,
    file: BinaryIO,
    content: Content,
    timeout_seconds: float,
    stop: threading.Event,
    cost: FetchCost,
) -> None:
    file.seek(0)
    digest, num_bytes = hashlib.sha256(), 0
    is_known = content.sha256 is not None
    with _Output(location, timeout_seconds, stop, is_known=is_known) as output:
        for block in output.blocks():
            num_bytes += len(block)
            cost.num_bytes += len(block)
            if content.num_bytes is not None and num_bytes > content.num_bytes:
                raise _Fault(f"it is longer than the {content.num_bytes} bytes of the manifest")
            digest.update(block)
            file.write(block)
    if content.num_bytes not in (None, num_bytes):
        raise _Fault(f"it ended after {num_bytes} of {content.num_bytes} bytes")
    if content.sha256 not in (None, digest.hexdigest()):
        raise _Fault(
            f"its hash is {digest.hexdigest()[:8]}…, expected {str(content.sha256)[:8]}…: "
            "damaged on the way, or not the file of the manifest"
        )
    file.truncate()  # of an attempt that had brought more


class _Output:
    """The output of the command for a location; leaving the block ends all it has started."""

    def __init__(
        self, location: str, timeout_seconds: float, stop: threading.Event, *, is_known: bool
    ) -> None:
        """`is_known`: a manifest says that the file is there; one that is missing may come."""
        self._is_known = is_known
        self._timeout_seconds = timeout_seconds
        self._stop = stop
        self._errors: BinaryIO | None = None
        self._pipe: Any = None  # of webdataset: closes its stream when it is forgotten
        command = command_of(location, timeout_seconds)
        self._process = self._open_other(location) if command is None else self._start(command)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the output
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,  # a group to end as a whole; and no terminal to ask on
            )
        except OSError as error:
            self._errors.close()
            raise FetchError(
                f"cannot run {command[0]}, which fetches data.shards: {error.strerror}; install it"
            ) from None

    def _open_other(self, location: str) -> subprocess.Popen[bytes]:
        from webdataset import gopen  # imports torch, and is seldom needed

        try:
            self._pipe = gopen(location, bufsize=0)
        except (ImportError, OSError, ValueError) as error:
            raise FetchError(f"webdataset cannot open {location}: {error}") from None
        process = self._pipe.proc
        assert isinstance(process, subprocess.Popen)
        return process

    def blocks(self) -> Iterator[bytes]:
        """What comes; raises `_Fault` if it stalls or the command fails."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while True:
            self._await(lambda: bool(poll.poll(_LOOK_SECONDS * 1000)))
            block = os.read(handle, _BLOCK_BYTES)
            if not block:
                break
            yield block
        self._await(self._has_ended)
        if self._process.returncode != 0:
            complaint = self._complaint()
            lasting = _LASTING if self._is_known else _LASTING | _MISSING
            raise _Fault(
                f"{complaint} (exit code {self._process.returncode})",
                is_final=any(words in complaint for words in lasting),
            )

    def _await(self, has_come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        while not has_come():
            if time.monotonic() > deadline:
                raise _Fault(f"no byte came for {self._timeout_seconds:g} s")
            self._raise_if_stopped()
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise FetchStopped("the fetch was stopped")

    def _has_ended(self) -> bool:
        try:
            self._process.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _complaint(self) -> str:
        """The end of what the command said of its failure."""
        if self._errors is None:
            return "the command of webdataset failed"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _ERROR_BYTES))
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "the command failed and said nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:  # not waited for: its number is still its own
            if self._pipe is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._errors is not None:
            self._errors.close()
