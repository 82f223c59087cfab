"""What is served, to whom, and under which rules."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from launch.__main__ import main
from pipeline.watch.root import Root
from pipeline.watch.server import bind
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import free_port


@contextlib.contextmanager
def serving(root: Root) -> Iterator[int]:
    """The page of the root as it is now; gives its port."""
    root.refresh()
    port = free_port()
    with bind(root, port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where a page is served."""
    (tmp_path / "<script>").mkdir()
    (tmp_path / "<script>" / "config.json").touch()
    with serving(Root(tmp_path)) as port:
        yield port


def ask(
    port: int, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.mark.parametrize(
    ("path", "host", "method", "status"),
    [
        ("/", None, "GET", 200),
        ("/?a-run", None, "HEAD", 200),
        ("/page.js", None, "GET", 200),
        ("/page.css", None, "GET", 200),
        ("/icon.svg", None, "GET", 200),
        ("/state.json", None, "GET", 200),
        ("/state.json?nothing", None, "GET", 200),
        ("/server.py", None, "GET", 404),
        ("/../server.py", None, "GET", 404),
        ("/%2e%2e/page.js", None, "GET", 404),
        ("/state.json", "evil.example", "GET", 421),
        ("/", None, "POST", 501),
        ("/", None, "BREW\x7f", 501),
    ],
)
def test_every_answer_is_under_the_rules(
    port: int, path: str, host: str | None, method: str, status: int
) -> None:
    found, headers, content = ask(port, path, host, method)
    assert found == status
    assert (method == "HEAD") == (content == b"")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|data:|\*", policy)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]:80", "localhost:22222"]
)
def test_names_of_loopback_are_served_by_any_port(port: int, host: str) -> None:
    assert ask(port, "/state.json", host)[0] == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "a@localhost"]
)
def test_another_name_is_refused_so_that_no_page_reaches_it_by_its_own(
    port: int, host: str
) -> None:
    status, _, content = ask(port, "/state.json", host)
    assert (status, b"root" in content) == (421, False)


def test_the_state_is_json_and_names_stay_text(port: int) -> None:
    _, headers, content = ask(port, "/state.json?%3Cscript%3E")
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(content)["run"]["name"] == "<script>"


def test_the_page_has_no_inline_code_and_asks_nobody_else() -> None:
    folder = resources.files("pipeline.watch")
    page = folder.joinpath("page.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", page)
    assert re.findall(r"<script[^>]*>[^<]*", page) == ['<script type="module" src="/page.js">']
    code = folder.joinpath("page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)
    for text in (page, code, folder.joinpath("page.css").read_text()):
        assert not re.search(r"//(?!www\.w3\.org/)\w+\.\w+|@import|url\(", text)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["watch", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_port_that_is_taken_is_one_sentence(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint(capsys, tmp_path, "--port", port) == (
        f"error: cannot serve on 127.0.0.1:{port}: Address already in use; give another --port\n"
    )


def test_what_is_no_folder_of_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert complaint(capsys, missing) == (
        f"error: {missing} is not a directory: give the one that holds the run directories\n"
    )
    (tmp_path / "events.jsonl").touch()
    assert complaint(capsys, tmp_path) == (
        f"error: {tmp_path} is a run directory: give the folder that holds it\n"
    )
