"""Files of a remote shard set, fetched by commands that a deadline can end, and verified.

A shard set's URL is a folder, or holds `{}` where the name of a file belongs:

    https://host/imagenet    s3://bucket/imagenet    file:///nfs/imagenet
    https://host/imagenet/{}?token=…    pipe:ssh host cat /data/imagenet/{}

A command for each scheme writes the file to its output: see `command_of`. Other schemes are opened
by webdataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from pipeline.config.data import DataConfig
from pipeline.config.timeouts import FIRST_PAUSE_SECONDS, longest_pause

_BLOCK_BYTES = 1 << 20
_LOOK_SECONDS = 0.1
"""Between two looks whether the fetch is to stop."""
_FIRST_PAUSE_SECONDS = FIRST_PAUSE_SECONDS
_ERROR_BYTES = 2000

_LASTING = frozenset(
    {
        *(f"returned error: {status}" for status in (400, 401, 403, 405, 407, 410, 414, 451)),
        *("curl: (1)", "curl: (3)", "curl: (51)", "curl: (58)", "curl: (60)", "curl: (77)"),
        *("(AccessDenied)", "(403)", "(NoSuchBucket)", "(InvalidAccessKeyId)", "(ExpiredToken)"),
        *("Unable to locate credentials", "Permission denied", "Is a directory"),
        *("command not found", ": not found", "No module named", "no gopen handler"),
    }
)
"""What curl, the AWS command line, cat, shells and Python say of errors that stay: a wrong URL or
protocol, certificates, permissions, missing programs."""
_MISSING = frozenset({"returned error: 404", "(404)", "(NoSuchKey)", "No such file"})
"""What they say of a file that is not there."""

_OPEN_WITH_WEBDATASET = (
    "import shutil, sys, webdataset; "
    "shutil.copyfileobj(webdataset.gopen(sys.argv[1]), sys.stdout.buffer)"
)
"""In a process of its own, so that a deadline can end whatever it starts."""

_log = logging.getLogger(__name__)


class FetchError(OSError):
    """A file could not be fetched, in all attempts."""


class FetchStopped(Exception):
    """The fetch was given up because nobody wants the file any more."""


class _Fault(Exception):
    """Why one attempt failed."""


class _LastingFault(_Fault):
    """Another attempt would fail in the same way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a file must hold, as far as it is known."""

    num_bytes: int | None = None
    sha256: str | None = None
    """In hexadecimal."""
    check: Callable[[bytes], object] | None = None
    """Raises `ValueError` if the bytes of the file are damaged."""


def location_of(url: str, name: str) -> str:
    """Where the file `name` of the shard set at `url` is.

    Raises `ValueError` if the URL leaves open where the name belongs.
    """
    scheme = url.partition(":")[0]
    quoted = shlex.quote(name) if scheme == "pipe" else quote(name)
    if "{}" in url:
        return url.replace("{}", quoted)
    if scheme == "pipe" or "?" in url or "#" in url:
        raise ValueError(
            f"data.shards is {url}; expected {{}} where the name of a file belongs, as in "
            "pipe:ssh host cat /data/shards/{} or https://host/shards/{}?key=value"
        )
    return f"{url.rstrip('/')}/{quoted}"


def command_of(location: str, timeout_seconds: float) -> list[str]:
    """The command that writes what is at `location` to its output."""
    scheme, _, rest = location.partition(":")
    match scheme:
        case "http" | "https" | "sftp" | "ftps" | "scp":
            # It has the deadline too, so that it ends if this process is killed.
            silence = str(max(1, round(timeout_seconds)))
            limits = ["--connect-timeout", silence, "--speed-limit", "1", "--speed-time", silence]
            options = ["--fail", "--silent", "--show-error", "--location", "--globoff"]
            return ["curl", *options, "--netrc-optional", *limits, "--url", location]
        case "s3":
            return ["aws", "s3", "cp", "--only-show-errors", location, "-"]
        case "gs":
            return ["gsutil", "cat", location]
        case "file":
            return ["cat", "--", url2pathname(urlsplit(location).path)]
        case "pipe":
            return ["/bin/sh", "-c", rest]
        case _:
            return [sys.executable, "-c", _OPEN_WITH_WEBDATASET, location]


def fetch(
    location: str, file: BinaryIO, content: Content, config: DataConfig, stop: threading.Event
) -> None:
    """Write what is at `location` to the empty or reserved `file`, and verify it.

    Raises `FetchError` after the last attempt, or the first that shows that no other can succeed,
    `FetchStopped` once `stop` is set, and `OSError` if `file` cannot be written.
    """
    for attempt in range(1, config.fetch_attempts + 1):
        try:
            _attempt(location, file, content, config.fetch_timeout_seconds, stop)
        except _Fault as fault:
            is_lasting = isinstance(fault, _LastingFault)
            if attempt == config.fetch_attempts or is_lasting:
                timeout = f"data.fetch_timeout_seconds ({config.fetch_timeout_seconds:g})"
                more = "" if is_lasting else f", or raise data.fetch_attempts or {timeout}"
                raise FetchError(
                    f"{location} could not be fetched in {attempt} "
                    f"attempt{'' if attempt == 1 else 's'}: {fault}; see that it is there and "
                    f"whole ('python -m data_prep verify SHARDS' where the shard set is){more}"
                ) from None
            # By chance up to half shorter, so that ranks spread out.
            pause = longest_pause(attempt, _FIRST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1)  # noqa: S311 - of a pause
            _log.warning("%s: %s; trying again in %.1f s", location, fault, pause)
            if stop.wait(pause):
                raise FetchStopped(location) from None
        else:
            return


def _attempt(
    location: str, file: BinaryIO, content: Content, timeout_seconds: float, stop: threading.Event
) -> None:
    file.seek(0)
    digest, num_bytes = hashlib.sha256(), 0
    # A manifest says that a file whose hash is known is there; one that is missing may come.
    lasting = _LASTING if content.sha256 is not None else _LASTING | _MISSING
    with contextlib.closing(_output(location, timeout_seconds, stop, lasting)) as blocks:
        for block in blocks:
            num_bytes += len(block)
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
    if content.check is not None:
        file.seek(0)
        try:
            content.check(file.read())
        except ValueError as error:
            raise _Fault(str(error)) from None


def _output(
    location: str, timeout_seconds: float, stop: threading.Event, lasting: Collection[str]
) -> Generator[bytes]:
    """What the command for a location writes; closing this ends all that the command has started.

    Raises `_Fault` if the output stalls or the command fails, for good if it says one of `lasting`.
    """
    silence = _Fault(f"no byte came for {timeout_seconds:g} s")
    command = command_of(location, timeout_seconds)
    with tempfile.TemporaryFile() as errors, _running(command, errors) as process:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + timeout_seconds
        while True:
            if stop.is_set():
                raise FetchStopped("the fetch was stopped")
            if poll.poll(_LOOK_SECONDS * 1000):
                block = os.read(process.stdout.fileno(), _BLOCK_BYTES)
                if not block:
                    break
                yield block
                deadline = time.monotonic() + timeout_seconds
            elif time.monotonic() > deadline:
                raise silence
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise silence from None
        if process.returncode != 0:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _ERROR_BYTES))
            said = errors.read().decode(errors="replace").strip().splitlines()
            complaint = said[-1].strip() if said else "the command failed and said nothing"
            kind = _LastingFault if any(words in complaint for words in lasting) else _Fault
            raise kind(f"{complaint} (exit code {process.returncode})")


@contextlib.contextmanager
def _running(command: list[str], errors: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,  # a group to end as a whole; and no terminal to ask on
        )
    except OSError as error:
        raise FetchError(
            f"cannot run {command[0]}, which fetches data.shards: {error.strerror}; install it"
        ) from None
    with process:
        try:
            yield process
        finally:
            if process.returncode is None:  # not waited for: its number is still its own
                os.killpg(process.pid, signal.SIGKILL)
