"""`python -m launch prometheus`: a Prometheus that finds every run under one directory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import string
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated
from wsgiref.simple_server import WSGIServer

from data_prep.shard_set.fields import Limit, within
from data_prep.shard_set.files import write_atomically
from launch import outcome_server
from pipeline.metrics.discovery import drop_unanswered
from pipeline.run.directory import RunDirectory

DEFAULT_PORT = 9090

_ADDRESS = "127.0.0.1"
_DURATION = re.compile(r"[1-9][0-9]{0,5}(ms|s|m|h)")
_Duration = Annotated[
    str, Limit("a number of up to 6 digits and ms, s, m or h, such as 15s", _DURATION.fullmatch)
]
_Port = Annotated[int, within(1, 65535, "a port from ")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Write a Prometheus configuration that finds every run under RUN_ROOT, and start it."""

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
    outcomes_port: _Port = outcome_server.DEFAULT_PORT
    """The port of the outcomes; with --start another one if it is taken."""
    port: _Port = DEFAULT_PORT
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
            server = open_server.enter_context(
                outcome_server.bind(root, port, or_any=options.start)
            )
            port = server.server_port
        page = outcome_server.page_of(root)
        _write_config(output, render_config(targets, page, port, options.scrape_interval))
        targets.mkdir(exist_ok=True)
        for line in drop_unanswered(targets):
            sys.stdout.write(f"{line}\n")
        command = server_command(output, root / "prometheus-data", options.port)
        sys.stdout.write(f"wrote {output}\n")
        if server is None:
            sys.stdout.write(
                f"start Prometheus with: {shlex.join(command)}\n"
                "and serve it outcomes with this command and --serve-outcomes\n"
            )
        elif options.start:
            _start(command, options.port, server, targets)
        else:
            sys.stdout.write(f"outcomes: http://{outcome_server.ADDRESS}:{port}{page}\n")
            sys.stdout.flush()
            outcome_server.serve(server, targets)


def render_config(
    targets: Path, outcomes_page: str, outcomes_port: int, scrape_interval: str
) -> str:
    """The configuration that watches the `file_sd` directory `targets` and the page of outcomes.

    Raises `ValueError` if Prometheus would not take the path.
    """
    if set("*?[\\") & set(str(targets)):
        raise ValueError(
            f"Prometheus would take {targets} as a pattern: "
            "use a --run-root without the characters * ? [ and \\"
        )
    template = resources.files("launch").joinpath("prometheus.yml").read_text()
    return string.Template(template).substitute(
        scrape_interval=scrape_interval,
        outcomes_page=outcomes_page,
        outcomes_address=f"{outcome_server.ADDRESS}:{outcomes_port}",
        # A JSON string is one of YAML too, if it escapes no character as two surrogates.
        targets=json.dumps(f"{targets}/*.json", ensure_ascii=False),
    )


def _write_config(output: Path, config: str) -> None:
    """Replace the file, unless somebody else wrote it."""
    first_line = config.splitlines()[0]
    if output.exists() and not output.read_text(errors="replace").startswith(first_line):
        raise FileExistsError(
            f"{output} was not written by this command: move it or give another --output"
        )
    if not output.parent.is_dir():
        raise NotADirectoryError(f"{output.parent} is not a directory: give another --output")
    write_atomically(output, config.encode())


def server_command(config: Path, storage: Path, port: int) -> list[str]:
    """How to start Prometheus on loopback."""
    return [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={storage}",
        f"--web.listen-address={_ADDRESS}:{port}",
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
    sys.stdout.write(f"Prometheus: http://{_ADDRESS}:{port}\n")
    sys.stdout.flush()
    outcome_server.serve_beside(outcomes, targets)
    os.execv(binary, command)


def _check_port(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_ADDRESS, port))
    except OSError as error:
        raise ValueError(
            f"Prometheus cannot listen on {_ADDRESS}:{port}: {error.strerror}; give another --port"
        ) from None
