"""`python -m launch prometheus`: a Prometheus that finds every run under one directory.

The command also serves to it how these runs stand, and conversions that write their metrics to
RUN_ROOT/conversions: see `launch.outcomes_server`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import string
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated
from wsgiref.simple_server import WSGIServer

from data_prep.shard_set.fields import Limit, at_least, within
from data_prep.shard_set.files import as_command
from data_prep.shard_set.streams import say
from launch.monitoring.dashboards import render_dashboards
from launch.monitoring.panels import DASHBOARDS
from launch.monitoring.rules import render_rules
from launch.options import write_own
from launch.outcomes_server import bind_outcomes, page_of, serve, serve_beside
from launch.templates import as_yaml
from pipeline.config.schema import LOOPBACK
from pipeline.metrics.discovery import drop_unanswered
from pipeline.run.directory import RunDirectory

_DURATION = re.compile(r"[1-9][0-9]{0,5}(ms|s|m|h)")
_Duration = Annotated[
    str, Limit("a number of up to 6 digits and ms, s, m or h, such as 15s", _DURATION.fullmatch)
]
_Port = Annotated[int, within(1, 65535, "a port from ")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write a Prometheus configuration that finds every run under RUN_ROOT, with alerts, and start
    it."""

    run_root: Path
    """The directory that holds the run directories."""
    output: Path | None = None
    """The configuration to write; if not given, RUN_ROOT/prometheus.yml."""
    scrape_interval: _Duration = "15s"
    """Time between two scrapes."""
    start: bool = False
    """Then run Prometheus and serve outcomes, on loopback, until Ctrl-C."""
    serve_outcomes: bool = False
    """Then serve outcomes to a Prometheus that is started otherwise, until Ctrl-C."""
    divide_rule_times: Annotated[float, at_least(1)] = 1.0
    """Divide all times in the rules by this, to see alerts within seconds; scrape as often."""
    dashboards: Path | None = None
    """Also write the dashboards there, as files that Grafana imports."""
    outcomes_port: _Port = 9752
    """The port of the outcomes; with --start another one if it is taken."""
    port: _Port = 9090
    """The port of Prometheus."""


def run(options: Options) -> None:
    """Write the configuration; then become the Prometheus that uses it, or serve it outcomes."""
    if options.start and options.serve_outcomes:
        raise ValueError("--start serves outcomes, too: leave --serve-outcomes out")
    root = options.run_root
    if not root.is_dir():
        raise NotADirectoryError(
            f"--run-root {root} is not a directory: give the one that holds the run directories"
        )
    root = root.resolve()
    output = (options.output or root / "prometheus.yml").resolve()
    targets = RunDirectory(root / "any-run").targets
    with contextlib.ExitStack() as open_server:
        server, port = None, options.outcomes_port
        if options.start or options.serve_outcomes:
            server = open_server.enter_context(bind_outcomes(root, port, or_any=options.start))
            port = server.server_port
        page = page_of(root)
        rules = output.with_name("prometheus-rules.yml")
        config = render_config(targets, rules, page, port, options.scrape_interval)
        _write_dashboards(options.dashboards)
        write_own(output, config, "--output")
        write_own(rules, render_rules(options.divide_rule_times), "--output")
        targets.mkdir(exist_ok=True)
        say(*drop_unanswered(targets))
        command = server_command(output, root / "prometheus-data", options.port)
        say(f"wrote {output}", f"wrote {rules}")
        if server is None:
            say(
                f"start Prometheus with: {as_command(*command)}",
                "and serve it outcomes with this command and --serve-outcomes",
            )
        elif options.start:
            _start(command, options.port, server, targets)
        else:
            say(f"outcomes: http://{LOOPBACK}:{port}{page}")
            serve(server, targets)


def _write_dashboards(folder: Path | None) -> None:
    if folder is None:
        return
    for name, text in render_dashboards().items():
        write_own(folder / name, text, "--dashboards")
    say(f"wrote {len(DASHBOARDS)} dashboards to {folder}")


def render_config(
    targets: Path, rules: Path, outcomes_page: str, outcomes_port: int, scrape_interval: str
) -> str:
    """The configuration that watches the `file_sd` directory `targets` and the page of outcomes.

    It loads the `rules`. Raises `ValueError` if Prometheus would not take a path.
    """
    for path, option in ((targets, "--run-root"), (rules, "--output")):
        if set("*?[\\") & set(str(path)):
            raise ValueError(
                f"Prometheus would take {path} as a pattern: "
                f"use a {option} without the characters * ? [ and \\"
            )
    template = resources.files("launch").joinpath("prometheus.yml").read_text()
    return string.Template(template).substitute(
        scrape_interval=scrape_interval,
        outcomes_page=outcomes_page,
        outcomes_address=f"{LOOPBACK}:{outcomes_port}",
        targets=as_yaml(f"{targets}/*.json"),
        rules=as_yaml(str(rules)),
    )


def server_command(config: Path, storage: Path, port: int) -> list[str]:
    """How to start Prometheus on loopback."""
    return [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={storage}",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]


def _start(command: list[str], port: int, outcomes: WSGIServer, targets: Path) -> None:
    """Become Prometheus, so that signals and the exit status are its own."""
    binary = shutil.which(command[0])
    if binary is None:
        raise FileNotFoundError(
            "prometheus is not installed: install it ('apt install prometheus' on Debian) and call "
            "again, or call without --start"
        )
    _check_port(port)
    say(f"Prometheus: http://{LOOPBACK}:{port}")
    serve_beside(outcomes, targets)
    os.execv(binary, command)  # noqa: S606 - no name in the words reaches a shell


def _check_port(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
    except OSError as error:
        raise ValueError(
            f"Prometheus cannot listen on {LOOPBACK}:{port}: {error.strerror}; give another --port"
        ) from None
