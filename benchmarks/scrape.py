"""What being scraped costs: time, size, CPU and memory of an exporter and of a Prometheus.

    python -m benchmarks.scrape [--json PATH]

One node: the files of 8 ranks with all metrics but those of a GPU's NVML, and the exporter that
training starts. An hour of it is compressed: 600 scrapes, as for one every 6 s (the default is 15),
each right after the 8 files were rewritten, and one after another without a pause; what the
exporter does between scrapes is measured for 20 s while it is left alone, and counted 180 times.

64 nodes × 8 ranks: one Prometheus, with the configuration that `launch prometheus` writes, and 64
targets that a server stands in for. It answers with the text of the node above under other ranks,
the job's own metrics on the first node only, and counters that grow; scrapes are every 2 s instead
of 15, for 60 s.

Longer than 250 lines: both ends of a scrape, and who stands in for 63 nodes of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.measurement import parser, report, spread
from data_prep.shard_set.families import exposition
from data_prep.shard_set.files import write_atomically
from launch.prometheus import render_config, server_command
from pipeline.metrics.declared import HEARTBEAT, JOB_METRICS, STEP_DURATION, TRAIN_SAMPLES
from pipeline.metrics.gpu import GpuCollector
from pipeline.metrics.job import JobMetrics
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import Writer, rank_file_name, render_rank_file
from pipeline.run.phase import PHASE_LABELS

NUM_RANKS, NUM_NODES = 8, 64
SCRAPES, IDLE_SECONDS, HOUR_SECONDS = 600, 20, 3600
SCRAPE_SECONDS, WATCH_SECONDS = 2, 60
PROBES = 50
QUERIES = {
    "images per second of a run": "sum by (run) (rate(alexnet_train_samples_total[1m]))",
    "where the time goes, by rank": "sum by (rank, phase) (rate(alexnet_step_seconds_total[1m]))",
    "killed ranks": 'max by (run, rank) (alexnet_rank_outcome{outcome="killed"}) == 1',
}


class RankFiles:
    """The files of a node's ranks, as this process publishes them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._contents = {}
        for number in range(NUM_RANKS):
            registry = CollectorRegistry()
            rank = RankMetrics(number, number, registry)
            rank.record_step(128, dict.fromkeys(PHASE_LABELS, 0.01))
            registry.register(GpuCollector(f"GPU-{number:032x}", rank=number, local_rank=number))
            if number == 0:
                job = JobMetrics(registry)
                job.count_step(1, 0.1)
            writer = Writer.this_process(rank=number, local_rank=number, interval_seconds=2)
            self._contents[folder / rank_file_name(number)] = writer, exposition(registry)

    def publish(self) -> None:
        now = f"# TYPE {HEARTBEAT.name} gauge\n{HEARTBEAT.name} {time.time()}\n".encode()
        for path, (writer, content) in self._contents.items():
            write_atomically(path, render_rank_file(writer, content + now), durable=False)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        content: bytes = answer.read()
    return content


@contextlib.contextmanager
def exporter(run: Path) -> Iterator[tuple[int, str]]:
    """Its process and the address of its metrics."""
    command = [sys.executable, "-m", "pipeline.exporter", "--run-dir", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            target = run.parent / "prometheus-targets" / f"{run.name}-{socket.gethostname()}.json"
            while not target.exists():
                time.sleep(0.05)
            ((address,),) = (row["targets"] for row in json.loads(target.read_bytes()))
            yield process.pid, f"http://{address}/metrics"
        finally:
            process.terminate()


def one_node(root: Path) -> tuple[dict[str, Any], bytes]:
    """The figures of an exporter, and what it answers."""
    files = RankFiles(root / "run" / "metrics")
    files.publish()
    with exporter(root / "run") as (pid, url):
        text = fetch(url)
        seconds = []
        for _ in range(PROBES):
            files.publish()
            begin = time.perf_counter()
            fetch(url)
            seconds.append(time.perf_counter() - begin)
        idle = cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(pid) - idle) * HOUR_SECONDS / IDLE_SECONDS
        before, memory = cpu_seconds(pid), [resident_bytes(pid)]
        begin = time.perf_counter()
        for number in range(SCRAPES):
            files.publish()
            fetch(url)
            if number % (SCRAPES // 10) == 0:
                memory.append(resident_bytes(pid))
        wall = time.perf_counter() - begin
        scraping = cpu_seconds(pid) - before
    series = [line for line in text.splitlines() if not line.startswith(b"#")]
    return {
        "ranks": NUM_RANKS,
        "scrape_seconds": spread(seconds),
        "bytes": len(text),
        "series": len(series),
        "an hour": {
            "scrapes": SCRAPES,
            "wall_seconds": round(wall, 1),
            "cpu_seconds_of_scrapes": round(scraping, 1),
            "cpu_seconds_between_scrapes": round(idle, 1),
            "cpu_share_of_a_core": round((scraping + idle) / HOUR_SECONDS, 5),
            "resident_mib": [round(value / 2**20, 1) for value in memory],
        },
    }, text


class StandIn(ThreadingHTTPServer):
    """Answers for all nodes, by the `?node=N` of the question."""

    daemon_threads = True

    def __init__(self, text: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        lines = text.decode().splitlines()
        of_job = {metric.name for metric in (*JOB_METRICS, STEP_DURATION)}
        is_job = [any(name in line for name in of_job) for line in lines]
        self._first = lines
        self._others = [line for line, job in zip(lines, is_job, strict=True) if not job]
        self._begin = time.monotonic()

    def text_of(self, node: int) -> bytes:
        """The node's exposition, with a counter of samples that grows by 1,000 a second."""
        lines = self._first if node == 0 else self._others
        text = "\n".join(lines) + "\n"
        text = re.sub(r'\brank="(\d+)"', lambda m: f'rank="{8 * node + int(m[1])}"', text)
        done = 1000 * (time.monotonic() - self._begin)
        pattern = rf"^({TRAIN_SAMPLES.name}{{.*}}) .*$"
        return re.sub(pattern, rf"\1 {done:.0f}", text, flags=re.MULTILINE).encode()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        assert isinstance(self.server, StandIn)
        content = self.server.text_of(int(query["node"][0].removeprefix("node")))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def many_nodes(root: Path, text: bytes) -> dict[str, Any]:
    """The figures of the Prometheus that scrapes them."""
    with StandIn(text) as server, socket.socket() as probe:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        address, targets = f"127.0.0.1:{server.server_port}", root / "prometheus-targets"
        targets.mkdir(parents=True)
        for node in range(NUM_NODES):
            labels = {"run": "run", "node": f"node{node}"}
            entry = json.dumps([{"targets": [address], "labels": labels}])
            write_atomically(targets / f"run-node{node}.json", entry.encode())
        config = root / "prometheus.yml"
        own = f"  - job_name: itself\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
        config.write_text(
            render_config(targets, root / "none.yml", "/none", port, f"{SCRAPE_SECONDS}s")
            + own  # no rules, no outcomes
        )
        command = server_command(config, root / "data", port)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as prometheus:
            try:
                figures = watched(port)
            finally:
                prometheus.terminate()
        server.shutdown()
    return figures


def watched(port: int) -> dict[str, Any]:
    """What Prometheus says of its scrapes and of itself after a while."""
    base = f"http://127.0.0.1:{port}/api/v1/query?query="

    def ask(expression: str) -> Sequence[float]:
        answer = json.loads(fetch(base + urllib.parse.quote(expression)))
        return [float(row["value"][1]) for row in answer["data"]["result"]]

    time.sleep(WATCH_SECONDS)
    job = '{job="alexnet_train"}'
    durations = ask(f"avg_over_time(scrape_duration_seconds{job}[30s])")
    assert sum(ask(f"up{job}")) == NUM_NODES
    cpu = ask('rate(process_cpu_seconds_total{job="itself"}[30s])')[0]
    answered = {}
    for name, query in QUERIES.items():
        seconds = []
        for _ in range(9):
            begin = time.perf_counter()
            ask(query)
            seconds.append(time.perf_counter() - begin)
        answered[name] = spread(seconds)
    return {
        "nodes": NUM_NODES,
        "ranks": NUM_NODES * NUM_RANKS,
        "scrape_interval_seconds": SCRAPE_SECONDS,
        "scrape_seconds_of_a_node": spread(durations),
        "samples_of_all_nodes": int(sum(ask(f"scrape_samples_scraped{job}"))),
        "series_in_head": int(ask("prometheus_tsdb_head_series")[0]),
        "prometheus_cpu_share_of_a_core": round(cpu, 3),
        "the_same_with_scrapes_every_15_s": round(cpu * SCRAPE_SECONDS / 15, 3),
        "prometheus_resident_mib": round(
            ask('process_resident_memory_bytes{job="itself"}')[0] / 2**20, 1
        ),
        "query_seconds": answered,
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures, text = one_node(Path(scratch) / "one")
        many = many_nodes(Path(scratch) / "many", text)
    claim = "an exporter takes less than 1 % of a core, and one Prometheus watches 512 ranks"
    report({"claim": claim, "one node": figures, "64 nodes": many}, options.json)


if __name__ == "__main__":
    main()
