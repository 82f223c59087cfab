"""Fetching one file: what every fault of a server or command leads to, and what is left behind."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.data import DataConfig
from pipeline.data.cache import remote
from pipeline.data.cache.remote import (
    Content,
    FetchError,
    FetchStopped,
    command_of,
    fetch,
    location_of,
)
from tests.machine import DEADLINE_SECONDS, is_running, wait_until
from tests.pipeline.data.cache.cache_process import make_config
from tests.pipeline.data.cache.flaky_server import Fault, FlakyServer, serving
from tests.pipeline.data.cache.silence import let_only_silence_last

NAME = "train-000000.tar"
BYTES = np.random.default_rng(0).bytes(300_000)
CONTENT = Content(num_bytes=len(BYTES), sha256=hashlib.sha256(BYTES).hexdigest())
UNHURRIED = make_config(fetch_timeout_seconds=DEADLINE_SECONDS, fetch_attempts=3)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a folder"
    path.mkdir()
    (path / NAME).write_bytes(BYTES)
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    with serving(folder) as running:
        yield running


def fetched(url: str, config: DataConfig = UNHURRIED, content: Content = CONTENT) -> bytes:
    file = io.BytesIO()
    fetch(location_of(url, NAME), file, content, config, threading.Event())
    return file.getvalue()


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://host/set", "https://host/set/a.tar"),
        ("s3://bucket/set/", "s3://bucket/set/a.tar"),
        ("https://host/set/{}?key=1", "https://host/set/a.tar?key=1"),
        ("pipe:ssh host cat /data/{} | zstd -d", "pipe:ssh host cat /data/a.tar | zstd -d"),
    ],
)
def test_a_url_says_where_files_are(url: str, location: str) -> None:
    assert location_of(url, "a.tar") == location


def test_names_are_quoted_for_shells_and_webs() -> None:
    assert location_of("pipe:cat {}", "a b;c") == "pipe:cat 'a b;c'"
    assert location_of("http://host", "a b?c") == "http://host/a%20b%3Fc"


@pytest.mark.parametrize("url", ["pipe:cat /data", "https://host/set?key=1"])
def test_a_url_without_a_place_for_names_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"data\.shards is .+ expected \{\} where the name"):
        location_of(url, "a.tar")


def test_the_commands() -> None:
    http = command_of("https://host/a.tar", 60.0)
    assert http[0] == "curl"
    assert command_of("sftp://host/a.tar", 60.0) == [*http[:-1], "sftp://host/a.tar"]
    assert "--fail" in http
    assert http[-2:] == ["--url", "https://host/a.tar"]
    s3 = ["aws", "s3", "cp", "--only-show-errors", "s3://bucket/a.tar", "-"]
    assert command_of("s3://bucket/a.tar", 60.0) == s3
    assert command_of("file:///nfs/a%20b.tar", 60.0) == ["cat", "--", "/nfs/a b.tar"]
    assert command_of("pipe:ssh host cat a.tar", 60.0) == ["/bin/sh", "-c", "ssh host cat a.tar"]
    assert command_of("gs://bucket/a.tar", 60.0) == ["gsutil", "cat", "gs://bucket/a.tar"]


@pytest.mark.parametrize("fault", ["drop", "stall", "silence", "503", "404", "short", "flip"])
def test_after_a_fault_the_file_is_fetched_again(
    server: FlakyServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_silence_last(monkeypatch, server.has_just_stalled)
    server.faults[NAME] = [fault]
    assert fetched(server.url) == BYTES
    assert server.requests[NAME] == 2


def test_what_is_too_long_is_cut_off(server: FlakyServer) -> None:
    server.faults[NAME] = ["long"]
    assert fetched(server.url) == BYTES
    assert server.requests[NAME] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("drop", r"curl: \(18\) .+ \(exit code 18\)"),
        ("stall", r"no byte came for 300 s"),
        ("503", r"returned error: 503 \(exit code 22\)"),
        ("404", r"returned error: 404 \(exit code 22\)"),
        ("short", r"it ended after 150000 of 300000 bytes"),
        ("long", r"it is longer than the 300000 bytes of the manifest"),
        (
            "flip",
            r"its hash is \w{8}…, expected \w{8}…: damaged on the way, or not the file of .+",
        ),
    ],
)
def test_a_fault_that_stays_is_reported(
    server: FlakyServer, fault: Fault, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_silence_last(monkeypatch, server.has_just_stalled)
    server.faults[NAME] = [fault] * 3
    url = re.escape(f"{server.url}/{NAME}")
    sentence = rf"^{url} could not be fetched in 3 attempts: .*{cause}; see that .+attempts or"
    with pytest.raises(FetchError, match=sentence):
        fetched(server.url)
    assert server.requests[NAME] == 3


def test_what_no_other_attempt_mends_is_not_tried_again(server: FlakyServer) -> None:
    server.faults[NAME] = ["403"]
    with pytest.raises(FetchError, match=r"in 1 attempt: .* returned error: 403 .+whole \([^,]+$"):
        fetched(server.url)
    assert server.requests[NAME] == 1
    server.faults[NAME] = ["404"]
    with pytest.raises(FetchError, match=r"in 1 attempt: .* returned error: 404"):
        fetched(server.url, content=Content())
    assert server.requests[NAME] == 2


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("pipe:no-such-program {}", "no-such-program: not found"),
        ("file:///nowhere", "/nowhere/.*No such file"),
        ("pipe:cat {} /etc", "Is a directory"),
    ],
)
def test_commands_that_no_other_attempt_mends(url: str, cause: str) -> None:
    with pytest.raises(FetchError, match=f"in 1 attempt: .*{cause}"):
        fetched(url, content=Content())


def test_a_server_that_is_not_there_is_reported() -> None:
    with socket.socket() as place:  # which nobody else can take, and where nobody listens
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}/shards"
        with pytest.raises(FetchError, match=r"in 3 attempts: curl: \(7\) .+ \(exit code 7\)"):
            fetched(url)


def test_faults_of_many_kinds_in_a_row(server: FlakyServer) -> None:
    server.faults[NAME] = ["503", "drop", "flip", "long", "short"]
    patient = make_config(fetch_timeout_seconds=DEADLINE_SECONDS, fetch_attempts=6)
    assert fetched(server.url, patient) == BYTES
    assert server.requests[NAME] == 6


def test_content_that_no_hash_is_known_of_is_checked(server: FlakyServer) -> None:
    server.faults[NAME] = ["short"]
    file = io.BytesIO()
    sizes: list[int] = []

    def check(arrived: bytes) -> None:
        sizes.append(len(arrived))
        if len(arrived) < len(BYTES):
            raise ValueError("half of it is missing")

    location, stop = location_of(server.url, NAME), threading.Event()
    fetch(location, file, Content(check=check), UNHURRIED, stop)
    assert file.getvalue() == BYTES
    assert sizes == [150_000, 300_000]


def test_a_mounted_folder_is_fetched_from(folder: Path) -> None:
    assert fetched(folder.as_uri()) == BYTES


def test_a_command_is_fetched_from(folder: Path) -> None:
    assert fetched(f"pipe:cat {shlex.quote(str(folder))}/{{}} | cat") == BYTES


@pytest.mark.parametrize(
    ("command", "seconds", "cause"),
    [
        ("head -c 1000 {}; echo lost >&2; exit 3", DEADLINE_SECONDS, r"lost \(exit code 3\)"),
        (
            "cat {}; exit 4",
            DEADLINE_SECONDS,
            r"the command failed and said nothing \(exit code 4\)",
        ),
        ("head -c 1000 {}", DEADLINE_SECONDS, r"it ended after 1000 of 300000 bytes"),
        ("kill -9 $$", DEADLINE_SECONDS, r"\(exit code -9\)"),
        ("exec >&-; sleep 1000", 0.3, r"no byte came for 0\.3 s"),
    ],
)
def test_a_command_that_fails_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, seconds: float, cause: str
) -> None:
    monkeypatch.chdir(folder)
    config = make_config(fetch_timeout_seconds=seconds, fetch_attempts=1)
    with pytest.raises(FetchError, match=cause):
        fetched(f"pipe:{command} # {{}}", config)


def test_nothing_a_stalled_command_started_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    url = f"pipe:echo $$ >> {pids}; sleep 1000 & echo $! >> {pids}; wait # {{}}"
    silences = [2, 4]

    def is_waiting() -> bool:
        if not pids.exists() or pids.read_text().count("\n") < silences[0]:
            return False
        del silences[0]
        return True

    let_only_silence_last(monkeypatch, is_waiting)
    with pytest.raises(FetchError, match=r"in 2 attempts: no byte came for 300 s"):
        fetched(url, make_config(fetch_timeout_seconds=DEADLINE_SECONDS, fetch_attempts=2))
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 4
    for pid in started:  # a kill takes a moment
        wait_until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]


def test_a_fetch_can_be_stopped(server: FlakyServer) -> None:
    server.faults[NAME] = ["stall"]
    stop, outcome = threading.Event(), []

    def run() -> None:
        location = location_of(server.url, NAME)
        try:
            fetch(location, io.BytesIO(), CONTENT, UNHURRIED, stop)
        except FetchStopped as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert server.has_stalled.wait(DEADLINE_SECONDS)
    stop.set()
    thread.join(DEADLINE_SECONDS)
    assert len(outcome) == 1


def test_a_disk_that_is_full_is_not_the_servers_fault(server: FlakyServer) -> None:
    class FullDisk(io.BytesIO):
        def write(self, _content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    location = location_of(server.url, NAME)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(location, FullDisk(), CONTENT, UNHURRIED, threading.Event())
    assert server.requests[NAME] == 1


def test_s3_is_fetched_by_its_own_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    script(
        tmp_path / "aws",
        f'echo "$@" >> {log}\ncase $4 in s3://bucket/set/*) cat "{folder}/${{4##*/}}";; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert fetched("s3://bucket/set") == BYTES
    assert log.read_text() == f"s3 cp --only-show-errors s3://bucket/set/{NAME} -\n"


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(
        FetchError, match=r"cannot run aws, which fetches data\.shards: No such file"
    ):
        fetched("s3://bucket/set")


def test_what_else_there_is_webdataset_opens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "webdataset" in command_of("ais://bucket/a.tar", 60.0)[2]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "huggingface_hub.py").write_text(
        "from types import SimpleNamespace\n"
        "class HfFileSystem:\n"
        "    def resolve_path(self, url):\n"
        "        name = url.removeprefix('hf://datasets/me/set/')\n"
        "        return SimpleNamespace(\n"
        "            repo_id='me/set', path_in_repo=name, repo_type='dataset', revision='main')\n"
        "def get_token():\n"
        "    return None\n"
        "def hf_hub_url(repo_id, filename, repo_type, revision):\n"
        f"    return {folder.as_uri()!r} + '/' + filename\n"
    )
    assert fetched("hf://datasets/me/set") == BYTES
    (tmp_path / "huggingface_hub.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(FetchError, match=r"in 1 attempt: ModuleNotFoundError: No module named"):
        fetched("hf://datasets/me/set")


def test_a_scheme_nobody_knows_is_reported() -> None:
    with pytest.raises(FetchError, match=r"in 1 attempt: ValueError: .* no gopen handler defined"):
        fetched("abc://host/set")
