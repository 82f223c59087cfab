"""The written configuration, its refusals, and the start of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.convert.metrics import publishing
from launch import outcomes_server
from launch.__main__ import main
from launch.outcomes_server import page_of
from launch.prometheus import render_config
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.run.directory import RunDirectory
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.fake_run import RunHistory, start_fields
from tests.pipeline.monitoring import (
    REPOSITORY,
    assert_clean_exposition,
    free_port,
    parse,
    process,
    require_tool,
)

CONFIG = """\
# Written by `python -m launch prometheus`, again at each call; copy it to keep changes.
global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files: ["/data/my runs/prometheus-rules.yml"]
scrape_configs:
  - job_name: alexnet_train
    file_sd_configs:
      - files: ["/data/my runs/prometheus-targets/*.json"]
        refresh_interval: 5s
    relabel_configs: # an exporter refuses who asks for another run or node than its own
      - {source_labels: [run], target_label: __param_run}
      - {source_labels: [node], target_label: __param_node}
  - job_name: alexnet_outcomes
    metrics_path: /outcomes/0123
    static_configs:
      - targets: ["127.0.0.1:9752"]
"""


def prometheus(root: Path, *options: object) -> int:
    return main(["prometheus", "--run-root", str(root), *map(str, options)])


def test_the_configuration() -> None:
    targets = Path("/data/my runs/prometheus-targets")
    rules = Path("/data/my runs/prometheus-rules.yml")
    assert render_config(targets, rules, "/outcomes/0123", 9752, "15s") == CONFIG


def test_promtool_takes_what_the_command_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promtool = require_tool("promtool")
    root = tmp_path / 'a "root": with $odd # characters, é and 🚀'
    root.mkdir()
    assert prometheus(root, "--scrape-interval", "1s") == 0
    config = root / "prometheus.yml"
    assert "characters, é and 🚀/prometheus-targets/*.json" in config.read_text()
    check = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    assert "SUCCESS" in check.stdout
    assert RunDirectory(root / "run").targets.is_dir()
    output = capsys.readouterr().out
    assert f"wrote {config}" in output
    assert "--web.listen-address=127.0.0.1:9090" in output


def test_a_second_call_rewrites_its_own_file_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "own.yml"
    for interval in ("15s", "30s"):
        assert prometheus(tmp_path, "--output", output, "--scrape-interval", interval) == 0
        assert f"scrape_interval: {interval}" in output.read_text()
    output.write_text("global: {}\n")
    assert prometheus(tmp_path, "--output", output) == 1
    assert output.read_text() == "global: {}\n"
    assert "was not written by this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("root", "options", "message"),
    [
        ("missing", [], "missing is not a directory"),
        (".", ["--output", "."], ": Is a directory"),
        (".", ["--output", "missing/prometheus.yml"], "missing is not a directory"),
        ("run[1]", [], "as a pattern"),
    ],
)
def test_wrong_input_is_one_sentence(
    root: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run[1]").mkdir()
    assert prometheus(Path(root), *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Errno" not in error
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.yml"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--port", port) for port in ("0", "65536", "'http'")),
        *(("--scrape-interval", value) for value in ("'15'", "'0s'", "'99999999h'")),
    ],
)
def test_a_wrong_number_is_refused(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prometheus(tmp_path, option, value.strip("'"))
    assert f"{option} is {value}; expected a " in capsys.readouterr().err


def test_a_missing_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prometheus(tmp_path, "--start") == 1
    assert "error: prometheus is not installed" in capsys.readouterr().err
    assert (tmp_path / "prometheus.yml").exists()


def test_a_taken_port_is_named_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_tool("prometheus")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert prometheus(tmp_path, "--start", "--port", port) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: Prometheus cannot listen on 127.0.0.1:{port}")
    assert error.count("\n") == 1
    assert not (tmp_path / "prometheus-data").exists()


def test_outcomes_are_served_to_who_watches_these_runs(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("runs", "others")]
    port = free_port()
    for root in roots:
        history = write_killed_run(root / "first")
        history.close()
    with publishing(roots[0] / "conversions", tmp_path / "shards", None) as metrics:
        metrics.begin(7)
    command = ["launch", "prometheus", "--run-root", roots[0], "--serve-outcomes"]
    with process(*command, "--outcomes-port", port) as server:
        assert server.stdout is not None
        url = ""
        while not url:
            words = server.stdout.readline().decode()
            url = words.removeprefix("outcomes: ").strip() if words.startswith("outcomes") else ""
        config = (roots[0] / "prometheus.yml").read_text()
        assert f'targets: ["127.0.0.1:{port}"]' in config
        assert url == f"http://127.0.0.1:{port}{page_of(roots[0])}"
        text = fetch_url(url)
        assert_clean_exposition(text)
        labels = frozenset({("run", "first"), ("outcome", "killed")})
        assert parse(text)["alexnet_run_outcome", labels] == 1
        labels = frozenset({("conversion", "shards"), ("task", "")})
        assert parse(text)["alexnet_convert_expected_samples", labels] == 7
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch_url(f"http://127.0.0.1:{port}{page_of(roots[1])}")
        others = ["launch", "prometheus", "--run-root", roots[1], "--serve-outcomes"]
        with process(*others, "--outcomes-port", port) as refused:
            refused.communicate(timeout=DEADLINE_SECONDS)
            assert refused.returncode == 1


def write_target(root: Path, name: str) -> Path:
    """One that nobody answers for."""
    labels = {"run": name, "node": "node", "__param_exporter": "0a"}
    path = RunDirectory(root / name).targets / f"{name}-node.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([{"targets": [f"127.0.0.1:{free_port()}"], "labels": labels}]))
    return path


def test_targets_that_nobody_answers_for_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the command is called, and now and then while it serves."""
    first = write_target(tmp_path, "first")
    assert prometheus(tmp_path) == 0
    assert not first.exists()
    assert f"removed {first}: no exporter of that run answers at 127.0" in capsys.readouterr().out
    second = write_target(tmp_path, "second")
    were_there: list[bool] = []

    def sleep(seconds: float) -> None:
        assert seconds == KEPT_SECONDS
        were_there.append(second.exists())
        if len(were_there) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(outcomes_server, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        outcomes_server.keep_tidy(second.parent)
    assert were_there == [True, False]


def test_who_serves_outcomes_ends_with_prometheus(tmp_path: Path) -> None:
    """Which Ctrl-C ends, and nobody has more to say then."""
    require_tool("prometheus")
    command = [sys.executable, "-m", "launch", "prometheus", "--run-root", str(tmp_path), "--start"]
    with subprocess.Popen(
        [*command, "--port", str(free_port())],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            assert server.stderr is not None
            output = ""
            while "Server is ready" not in output:
                output += (line := server.stderr.readline())
                assert line, output
            config = (tmp_path / "prometheus.yml").read_text()
            address = re.findall(r'targets: \["(.*)"\]', config)[0]
            assert b"alexnet_run_outcome" in fetch_url(f"http://{address}{page_of(tmp_path)}")
            os.killpg(server.pid, signal.SIGINT)
            output += server.stderr.read()  # ends when nobody has it open
            assert server.wait(DEADLINE_SECONDS) == 0
        finally:
            server.kill()
    assert "Traceback" not in output
    with pytest.raises(urllib.error.URLError):
        fetch_url(f"http://{address}{page_of(tmp_path)}")


def write_killed_run(path: Path) -> RunHistory:
    path.mkdir(parents=True)
    history = RunHistory(RunDirectory(path))
    history.write("run", 0, **start_fields())
    return history


def fetch_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as response:
        content = response.read()
    assert isinstance(content, bytes)
    return content


def test_launch_imports_no_torch() -> None:
    probe = "import sys, launch.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY).returncode == 0
