"""An exporter answers for its own run and node alone, and no target outlives its owner."""

from __future__ import annotations

import calendar
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.metrics.declared import HEARTBEAT
from pipeline.metrics.discovery import Target, drop_unanswered
from pipeline.metrics.pages import Identity
from pipeline.metrics.rank_file import (
    Writer,
    last_heartbeat,
    rank_file_name,
    read_writer,
    render_rank_file,
)
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import (
    address_of,
    by_rank,
    entry_of,
    exporter_process,
    fetch,
    free_port,
    make_certificate,
    process,
    question,
    rank_process,
    refusal,
    scrape,
    target_file,
    wait_for,
)

HOST = socket.gethostname()


def make_run(root: Path, name: str) -> Path:
    run = root / name
    run.mkdir(parents=True)
    return run


def test_only_metrics_are_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a <b> & c")
    with exporter_process(run, "--port", 0):
        address = address_of(run)
        page = fetch(address, "/").decode()
        assert f"run a &lt;b&gt; &amp; c ({tmp_path}/a &lt;b&gt; &amp; c) on node {HOST}<" in page
        assert '<a href="/metrics">' in page
        assert fetch(address, "/healthz") == b"ok\n"
        assert b"# TYPE alexnet_exporter_info gauge" in fetch(address)
        with urllib.request.urlopen(f"http://{address}/", timeout=DEADLINE_SECONDS) as answer:
            assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
        for path in ("/favicon.ico", "/metrics/", "/x"):
            status, text = refusal(address, path)
            assert (status, text.count("\n")) == (404, 1)
            assert "alexnet" not in text


@pytest.mark.slow
def test_the_page_says_how_ranks_stand_and_health_whether_they_can_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    with exporter_process(run, "--port", 0):
        address = address_of(run)
        assert "The run has not begun." in fetch(address, "/").decode()
        with rank_process(run, 0), rank_process(run, 1) as victim:
            assert fetch(address, "/healthz") == b"ok\n"
            begun = {
                str(rank): int(read_writer(run / "metrics" / rank_file_name(rank)).since)
                for rank in (0, 1)
            }
            assert rows_of(fetch(address, "/"), begun) == {"0": "running", "1": "running"}
            victim.kill()
            victim.wait()
            page = fetch(address, "/")
            assert rows_of(page, begun) == {"0": "running", "1": "killed"}
            assert b"The run is <b>running</b>; this attempt began at 20" in page
            (run / "metrics" / "rank-00001.prom").write_bytes(b"cut")
            page = fetch(address, "/")
            assert rows_of(page, begun) == {"0": "running"}
            assert b"Files of ranks that cannot be read: 1" in page
        assert b"The run is <b>killed</b>" in fetch(address, "/")
        run.rename(tmp_path / "moved")
        for path in ("/healthz", "/"):
            status, text = refusal(address, path)
            assert status == 503
            assert text == (
                f"the metrics of run run ({run}) on node {HOST} cannot be read: "
                f"{run}: No such file or directory\n"
            )
        (tmp_path / "moved").rename(run)
        assert fetch(address, "/healthz") == b"ok\n"


def rows_of(page: bytes, begun: dict[str, int]) -> dict[str, str]:
    """How each rank stands, by its number, in the page's table, which says when they have begun."""
    rows = re.findall(r"<tr><td>(\d+)<td>(.*?)<td>(\w+)<td>(.*?)<td>\d+ s ago", page.decode())
    assert all(node == HOST for _, node, _, _ in rows)
    for rank, *_, since in rows:
        assert calendar.timegm(time.strptime(since, "%Y-%m-%d %H:%M:%S")) == begun[rank]
    return {rank: outcome for rank, _, outcome, _ in rows}


def test_who_asks_for_another_run_node_or_exporter_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "own")
    with rank_process(run, 0), exporter_process(run, "--port", 0):
        address, labels = entry_of(target_file(run))
        own = labels["__param_exporter"]
        for query in ("", f"?run=own&node={HOST}", f"?exporter={own}"):
            assert b"alexnet_rank_up{" in fetch(address, f"/metrics{query}")
        for query, differing in (
            ("run=other", "run=other"),
            ("run=other&node=n2", "run=other, node=n2"),
            (f"run=own&node={HOST}&exporter=00", "exporter=00"),
            (f"run=own&run=other&exporter={own}", "run=other"),
            ("exporter=", "exporter="),
        ):
            assert refusal(address, f"/metrics?{query}") == (
                421,
                f"here is run own ({run}) on node {HOST}, not {differing}: "
                "the target is out of date\n",
            )


@pytest.mark.slow
def test_a_killed_exporter_leaves_no_target_to_its_successor_at_the_address(tmp_path: Path) -> None:
    port = free_port()
    first, elsewhere = make_run(tmp_path / "a", "first"), make_run(tmp_path / "b", "second")
    second = make_run(tmp_path / "a", "second")
    for run in (first, elsewhere):
        with exporter_process(run, "--port", port) as exporter:
            exporter.kill()
            exporter.wait(DEADLINE_SECONDS)
        assert address_of(run) == f"127.0.0.1:{port}"
    with rank_process(second, 0, 3600), exporter_process(second, "--port", port):
        wait_for(lambda: not target_file(first).exists(), "the end of the target beside its own")
        assert by_rank(scrape(second), "alexnet_rank_up") == {0: 1}
        # The other lies in a folder that it does not know, and is of a run of the same name.
        stale = target_file(elsewhere)
        status, text = refusal(f"127.0.0.1:{port}", question(stale))
        assert status == 421
        assert text.startswith(f"here is run second ({second}) on node {HOST}, not exporter=")
        (line,) = drop_unanswered(stale.parent)
        assert line == f"removed {stale}: no exporter of that run answers at 127.0.0.1:{port}"
        assert not stale.exists()
        assert drop_unanswered(target_file(second).parent) == []


def test_a_name_that_is_no_text_is_served(tmp_path: Path) -> None:
    run = make_run(tmp_path, os.fsdecode(b"caf\xe9"))
    with process("pipeline.exporter", "--run-dir", run, "--port", 0):
        folder = tmp_path / "prometheus-targets"
        wait_for(lambda: any(folder.glob("caf*.json")), "a target")
        (target,) = folder.glob("caf*.json")
        assert 'served_run="caf\ufffd"' in fetch(entry_of(target)[0], question(target)).decode()


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    """Though whoever opens it would be given what a file has."""
    labels = {"__param_exporter": "1"}
    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=1)
    target, rank = tmp_path / "x.json", tmp_path / rank_file_name(0)
    contents = {
        target: json.dumps([{"targets": ["h:1"], "labels": labels}]).encode(),
        rank: render_rank_file(writer, f"\n{HEARTBEAT.name}{{}} 1.0\n".encode()),
    }
    threads = []
    for path, content in contents.items():
        path.write_bytes(content)
        assert Target.read(path) or read_writer(path)
        path.unlink()
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(content,), daemon=True))
        threads[-1].start()
    assert Target.read(target) is None
    with pytest.raises(ValueError, match="is not a file"):
        read_writer(rank)
    assert last_heartbeat(tmp_path) is None
    for path, thread in zip(contents, threads, strict=True):
        assert path.read_bytes() == contents[path]
        thread.join()


def test_what_was_not_written_by_an_exporter_is_left_alone(tmp_path: Path) -> None:
    port = free_port()
    for name, content in {
        "other.json": [{"targets": [f"127.0.0.1:{port}"], "labels": {"team": "a"}}],
        "two.json": [{"targets": ["127.0.0.1:1", "127.0.0.1:2"], "labels": {}}],
        "proxy.json": [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"run": "r", "node": HOST, "team": "a"}}
        ],
        "number.json": 7,
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "half.json").write_text("[{")
    gone = tmp_path / "gone.json"
    labels = {"run": "gone", "node": HOST, "__param_exporter": "0a"}
    gone.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": labels}]))
    assert drop_unanswered(tmp_path, ("node", "another")) == []
    assert [line.split(":")[0] for line in drop_unanswered(tmp_path)] == [f"removed {gone}"]
    assert len(list(tmp_path.iterdir())) == 5
    assert drop_unanswered(tmp_path / "missing") == []


@pytest.mark.slow
@pytest.mark.parametrize(("status", "num_dropped"), [(401, 0), (403, 0), (404, 1), (500, 1)])
def test_a_proxy_that_wants_a_password_is_not_taken_for_nobody(
    status: int, num_dropped: int, tmp_path: Path
) -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

    labels = {"run": "run", "node": HOST, "__param_exporter": "0a"}
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        target = [{"targets": [f"127.0.0.1:{server.server_port}"], "labels": labels}]
        (tmp_path / "proxy.json").write_text(json.dumps(target))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(drop_unanswered(tmp_path)) == num_dropped
        server.shutdown()


def test_a_target_that_was_dropped_returns_if_its_exporter_lives(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    with exporter_process(run, "--port", 0):
        target_file(run).unlink()
        wait_for(target_file(run).exists, "the target")
        assert drop_unanswered(target_file(run).parent) == []


def test_nobody_asks_itself_whether_it_is_there(tmp_path: Path) -> None:
    """On a busy host an exporter may not answer in time, and its target would be gone for a while.

    One of the same place that is not its own is another one's.
    """
    address = f"127.0.0.1:{free_port()}"
    own, other = (
        Target.of(
            tmp_path / f"{name}.json",
            Identity(run="run", run_dir=str(tmp_path), node=HOST),
            address=address,
            scheme="http",
        )
        for name in ("own", "other")
    )
    for target in (own, other):
        target.announce()
    (line,) = drop_unanswered(tmp_path, ("node", HOST), own=own)
    assert line.startswith(f"removed {other.path}: ")
    assert own.path.exists()
    assert drop_unanswered(tmp_path) != []


def test_runs_of_one_name_are_told_apart_in_one_folder_of_targets(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / root, "run") for root in ("a", "b")]
    folder = tmp_path / "targets"
    options = ("--port", 0, "--targets-dir", folder)
    with (
        process("pipeline.exporter", "--run-dir", runs[0], *options),
        process("pipeline.exporter", "--run-dir", runs[1], *options),
    ):

        def shown() -> set[str]:
            targets = map(Target.read, folder.glob("[!.]*.json"))
            return {target.labels["run_dir"] for target in targets if target is not None}

        wait_for(lambda: shown() == {str(run) for run in runs}, "two targets")


@pytest.mark.slow
def test_an_exporter_gives_way_to_one_that_listens_elsewhere(tmp_path: Path) -> None:
    """A run goes on while its last values are served, and now it has several nodes."""
    run = make_run(tmp_path, "run")
    with exporter_process(run, "--port", 0) as first:
        assert address_of(run).startswith("127.0.0.1:")
        with process(
            "pipeline.exporter", "--run-dir", run, "--port", 0, "--address", "127.0.0.2"
        ) as second:
            assert first.wait(DEADLINE_SECONDS) == 0
            wait_for(lambda: target_file(run).exists(), "its target")
            wait_for(lambda: address_of(run).startswith("127.0.0.2:"), "the new address")
            assert by_rank(scrape(run), "alexnet_rank_up") == {}
            assert second.poll() is None


@pytest.mark.slow
def test_an_exporter_gives_way_to_one_with_the_certificates_now_asked_for(tmp_path: Path) -> None:
    """Or with none; but not to one that cannot read them."""
    certificate, key = make_certificate(tmp_path)
    run = make_run(tmp_path, "run")
    command = ("pipeline.exporter", "--run-dir", run, "--port", 0)
    tls = ("--certfile", certificate, "--keyfile", key)
    leftover = target_file(run).with_name(f".tmp-{target_file(run).name}-0a1b2c3d")

    def replaces(old: subprocess.Popen[bytes]) -> bool:
        return old.poll() == 0 and target_file(run).exists()

    with exporter_process(run, "--port", 0) as plain:
        with process(*command, "--certfile", key, "--keyfile", key) as unreadable:
            assert unreadable.wait(DEADLINE_SECONDS) == 1
        assert plain.poll() is None
        leftover.touch()
        with process(*command, *tls) as open_to_all:
            wait_for(lambda: replaces(plain), "the end of the one without TLS")
            assert entry_of(target_file(run))[1]["__scheme__"] == "https"
            wait_for(lambda: not leftover.exists(), "the end of an unfinished target")
            with process(*command, *tls, "--client-cafile", certificate) as closed:
                wait_for(lambda: replaces(open_to_all), "the end of the one open to all")
                with process(*command):
                    wait_for(lambda: replaces(closed), "the end of the one with TLS")
                    assert entry_of(target_file(run))[1]["__scheme__"] == "http"
                    scrape(run)


@pytest.mark.slow
@pytest.mark.parametrize("is_closed", [False, True])
def test_over_tls_to_everybody_or_to_holders_of_a_certificate(
    is_closed: bool, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    run = make_run(tmp_path, "run")
    options = ["--port", 0, "--certfile", certificate, "--keyfile", key]
    options += ["--client-cafile", certificate] if is_closed else []
    trusting = ssl.create_default_context(cafile=certificate)
    with ExitStack() as stack, exporter_process(run, *options):
        address, labels = entry_of(target_file(run))
        assert labels["__scheme__"] == "https"
        url = f"https://{address}{question(target_file(run))}"
        if is_closed:
            with pytest.raises(OSError, match=r"(?i)certificate|reset|EOF|pipe"):
                urllib.request.urlopen(url, timeout=DEADLINE_SECONDS, context=trusting).read()
            trusting.load_cert_chain(certificate, key)
        else:
            silent = stack.enter_context(socket.socket())  # it holds nobody up for long
            silent.connect(("127.0.0.1", int(address.split(":")[1])))
        content = urllib.request.urlopen(url, timeout=DEADLINE_SECONDS, context=trusting).read()
        assert b"alexnet_exporter_info" in content
        with pytest.raises(OSError, match=r"reset by peer|closed connection|pipe"):
            fetch(address)
        assert drop_unanswered(target_file(run).parent) == []
