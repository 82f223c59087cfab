"""Real ranks, exporters and scrapes for the tests of the monitoring."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipeline.run.ending import RUN_OUTCOMES
from tests.machine import DEADLINE_SECONDS, skip

REPOSITORY = Path(__file__).parents[2]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until `condition` holds; fail the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def eventually(check: Callable[[], None]) -> None:
    """Call `check` until none of its assertions fails; the last failure is the test's.

    For values of live processes: any scrape or publication may be late, or be missed.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def require_tool(name: str) -> str:
    """The path of a system program; without it the test is skipped, but fails in CI."""
    path = shutil.which(name)
    if path is None:
        skip(f"{name} is not installed: call 'make system'")
    return path


def assert_clean_exposition(text: bytes) -> None:
    """Put the text before Prometheus' own linter."""
    promtool = require_tool("promtool")
    check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")


def free_port() -> int:
    """A port that nobody takes until it is used: no other test at the same time is given it.

    One of the system's own choice, which begin at 32,768, could be the next that it gives to
    somebody else's connection, and a rank would wait there for ever.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", next(_ports)))
            return int(probe.getsockname()[1])


def _own_ports() -> Iterator[int]:
    """Those of this worker of pytest in turn: not the next one, which an exporter may have taken.

    Where they begin no test can seed.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + worker % 11 * 2_000
    begin = random.SystemRandom().randrange(2_000)
    return (first + (begin + 7 * number) % 2_000 for number in itertools.count())


_ports = _own_ports()


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process that does not outlive the block."""
    command = [sys.executable, "-m", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as child:
        try:
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            child.kill()


@contextlib.contextmanager
def rank_process(
    run: Path, rank: int, interval_seconds: float = 0.5
) -> Iterator[subprocess.Popen[bytes]]:
    """A rank that has published. After ten intervals without a sign of life it is taken for dead.

    On a busy machine a process may not run for a second.
    """
    path = run / "metrics" / f"rank-{rank:05d}.prom"
    path.unlink(missing_ok=True)
    with process("tests.pipeline.rank_process", run, rank, interval_seconds) as child:
        wait_for(path.exists, f"{path}")
        yield child


def finish(rank: subprocess.Popen[bytes]) -> None:
    """Let a rank end well."""
    assert rank.stdin is not None
    rank.stdin.close()
    assert rank.wait(DEADLINE_SECONDS) == 0


@contextlib.contextmanager
def exporter_process(run: Path, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """An exporter that serves."""
    with process("pipeline.exporter", "--run-dir", run, *options) as child:
        wait_for(lambda: target_file(run).exists() or child.poll() is not None, "a target")
        yield child


def exporter_pid(run: Path) -> int:
    """Of the exporter that serves the run on this host."""
    (lock,) = (run / "metrics").glob("exporter-*.lock")
    return int(lock.read_text().rpartition(" ")[2])


def target_file(run: Path) -> Path:
    return run.parent / "prometheus-targets" / f"{run.name}-{socket.gethostname()}.json"


def address_of(run: Path) -> str:
    """Where the run's target says that its exporter is."""
    return entry_of(target_file(run))[0]


def entry_of(target: Path) -> tuple[str, dict[str, str]]:
    """The address and the labels in a target's file."""
    (entry,) = json.loads(target.read_text())
    (address,) = entry["targets"]
    assert isinstance(address, str)
    return address, entry["labels"]


def question(target: Path) -> str:
    """The path and query that Prometheus asks for, by a target's file and our configuration."""
    _, labels = entry_of(target)
    query = {"exporter": labels["__param_exporter"], "run": labels["run"], "node": labels["node"]}
    return f"/metrics?{urllib.parse.urlencode(query)}"


def fetch(address: str, path: str = "/metrics") -> bytes:
    """What is served there; raises `urllib.error.HTTPError` if that is refused."""
    with urllib.request.urlopen(f"http://{address}{path}", timeout=DEADLINE_SECONDS) as response:
        content = response.read()
    assert isinstance(content, bytes)
    return content


def refusal(address: str, path: str) -> tuple[int, str]:
    """The status and the text of what is not served."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(address, path)
    return caught.value.code, caught.value.read().decode()


def parse(text: bytes) -> Samples:
    """Every sample by name and labels; a duplicate fails the test."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def scrape(run: Path) -> Samples:
    """As Prometheus does it."""
    target = target_file(run)
    return parse(fetch(entry_of(target)[0], question(target)))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """For loopback, signed by itself."""
    require_tool("openssl")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-days", "2", "-subj", "/CN=node"]
    words += ["-addext", "subjectAltName=DNS:node,IP:127.0.0.1"]
    words += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    return certificate, key


def by_rank(samples: Samples, name: str) -> dict[int, float]:
    """The values of a metric that has the labels of a rank and no other."""
    return {
        int(dict(labels)["rank"]): value
        for (sample_name, labels), value in samples.items()
        if sample_name == name
    }


def served(collector: Collector, name: str) -> dict[tuple[str, ...], str]:
    """The current outcome by the values of the other labels; every other outcome is there at 0."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for family in collector.collect():
        for sample in family.samples if family.name == name else ():
            *others, (_, outcome) = sample.labels.items()
            values = found.setdefault(tuple(value for _, value in others), {})
            values[outcome] = sample.value
    for values in found.values():
        assert values.keys() == set(RUN_OUTCOMES)
        assert sorted(values.values()) == [0, 0, 0, 0, 1]
    return {
        labels: next(outcome for outcome, value in values.items() if value)
        for labels, values in found.items()
    }


class Api:
    """Instant queries to the server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1/query?query="

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of the answer; none while the server starts."""
        try:
            with urllib.request.urlopen(self._base + urllib.parse.quote(expression)) as response:
                answer = json.load(response)
        except (urllib.error.URLError, ConnectionError):
            return []
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def labels(self, expression: str) -> list[dict[str, str]]:
        """Those of each series of the answer."""
        return [labels for labels, _ in self.query(expression)]

    def value(self, expression: str) -> float:
        """The one value of the answer; NaN until there is one."""
        rows = self.query(expression)
        assert len(rows) <= 1
        return rows[0][1] if rows else float("nan")
