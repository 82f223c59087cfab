"""Serves the metrics of a run's ranks on this node to Prometheus, as one target.

    python -m pipeline.exporter --run-dir RUN [--port 9753] [--address 127.0.0.1]

One exporter serves a run on a node, and no other run (see `pipeline.metrics.pages`): the one that
was started last. While it serves, a `file_sd` target tells Prometheus its address. It marks a dead
rank with `alexnet_rank_up 0`, and serves last values for three minutes after its ranks are gone,
but in a SLURM job, which would keep its nodes for that, it leaves with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prometheus_client import CollectorRegistry

from data_prep.shard_set.files import describe, remove_leftovers
from data_prep.shard_set.locks import locked
from data_prep.shard_set.options import Named, read_options, words_of
from data_prep.shard_set.streams import say
from pipeline.config.data import Location
from pipeline.config.schema import LOOPBACK, MetricsConfig, Port
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics.discovery import Target, drop_unanswered, location_of
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.pages import Identity, application, check_certificates, explained, listen
from pipeline.run.directory import RunDirectory

_CLIENT_SECONDS = 5.0
"""A client that says nothing holds up the next one no longer than that."""

_FIRST_RANK_SECONDS = 60.0
"""How long the first rank may take to publish."""

_POLL_SECONDS = 0.5
_LEAVE_SECONDS = 60.0
"""How long the one before may take to leave, on a busy host."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExporterOptions:
    """Serve the metrics of a run's ranks on this node to Prometheus."""

    run_dir: Path
    """The run's directory."""
    port: Port = MetricsConfig().exporter_port
    """The first port to try."""
    address: str = LOOPBACK
    """Where to listen; 0.0.0.0 to serve other hosts too."""
    certfile: Annotated[Location, Named("--certfile", "FILE")] = ""
    """Certificate (PEM) to serve over TLS with. If not given: no TLS."""
    keyfile: Annotated[Location, Named("--keyfile", "FILE")] = ""
    """Private key (PEM) of the certificate."""
    client_cafile: Annotated[Location, Named("--client-cafile", "FILE")] = ""
    """Serve only clients that show a certificate of one of these authorities (PEM)."""
    targets_dir: Path | None = None
    """Where Prometheus looks for file_sd targets; if not given, beside the run directory."""


def start_exporter(run: RunDirectory, metrics: MetricsConfig, address: str) -> None:
    """Start this node's exporter as a process of its own, which outlives the caller.

    Call it once a node. It never raises: an exporter that cannot start is logged, and the training
    goes on without it.
    """
    options = ExporterOptions(
        run_dir=run.path.resolve(),
        port=metrics.exporter_port,
        address=address,
        certfile=metrics.exporter_certfile,
        keyfile=metrics.exporter_keyfile,
        client_cafile=metrics.exporter_client_cafile,
    )
    command = [sys.executable, "-m", "pipeline.exporter", *words_of(options, ExporterOptions)]
    log_path = run.metrics / f"exporter-{socket.gethostname()}.log"
    try:
        run.metrics.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log_file:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
    except OSError as error:
        _log.warning(
            "cannot start the metrics exporter: %s; training goes on without it", describe(error)
        )


def serve(run: RunDirectory, metrics: MetricsConfig, *, address: str, targets: Path) -> None:
    """Serve the run's ranks on this node until they are gone, or SIGTERM or SIGINT comes.

    An exporter that does so already leaves. Raises `OSError` if this one cannot listen.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host = socket.gethostname()
    run.metrics.mkdir(exist_ok=True)
    identity = Identity(run=run.name, run_dir=str(run.path.resolve()), node=host)
    collector, registry = NodeCollector(run, host), CollectorRegistry()
    registry.register(collector)
    registry.register(identity)
    with explained(address, metrics):
        check_certificates(metrics)  # before another exporter leaves
    lock = run.metrics / f"exporter-{host}.lock"
    owner = f"exporter {identity.exporter}, process {os.getpid()}\n"
    with contextlib.suppress(OSError):  # a full disk
        lock.write_text(owner)
    with contextlib.ExitStack() as held:
        if not _wait_for_turn(held, lock, owner):
            return
        with explained(address, metrics):
            server = listen(address, metrics, application(registry, identity, run))
        held.callback(server.server_close)  # for a successor at this port
        held.callback(server.shutdown)
        socket.setdefaulttimeout(_CLIENT_SECONDS)
        path = targets / f"{_target_name(run, targets)}-{identity.node}.json"
        location = location_of(address, server.server_port, host)
        scheme = "https" if metrics.exporter_certfile else "http"
        target = Target.of(path, identity, address=location, scheme=scheme)
        say(f"serving {run.path} at {scheme}://{location}/metrics, target {path}")
        with contextlib.suppress(OSError):  # another user's
            remove_leftovers(targets, {path.name})
        linger_seconds = 0.0 if "SLURM_JOB_ID" in os.environ else KEPT_SECONDS
        # Before the target is there: whoever sees it may end the ranks at once.
        last_start = collector.last_start()
        first_seconds = 0.0 if collector.has_running_ranks() else _FIRST_RANK_SECONDS
        deadline = time.monotonic() + max(linger_seconds, first_seconds)
        target.announce()
        # Of others that were here, or of this run's on nodes that it has lost.
        whose = ("node", host), ("run_dir", identity.run_dir)
        say(*drop_unanswered(targets, *whose, own=target))
        while not stop.wait(_POLL_SECONDS) and _is_owner(lock, owner):
            target.announce()
            before, last_start = last_start, collector.last_start()
            # One may come and go in between.
            if last_start != before or collector.has_running_ranks():
                deadline = time.monotonic() + linger_seconds
            elif time.monotonic() >= deadline:
                break
        target.withdraw()  # before the lock ends: a successor writes the same file


def _target_name(run: RunDirectory, targets: Path) -> str:
    """The run's; in a folder with targets of runs from elsewhere, one that no other run has."""
    if targets.resolve() == run.targets:
        return run.name
    return f"{run.name}-{hashlib.sha256(bytes(run.path.resolve())).hexdigest()[:8]}"


def _wait_for_turn(held: contextlib.ExitStack, lock: Path, owner: str) -> bool:
    """Lock `lock` for as long as `held` is; False if another exporter was started meanwhile.

    Raises `BlockingIOError` if the one before does not leave.
    """
    deadline = time.monotonic() + _LEAVE_SECONDS
    while True:
        try:
            held.enter_context(locked(lock, wait_seconds=_POLL_SECONDS))
        except BlockingIOError:
            if not _is_owner(lock, owner):
                return False
            if time.monotonic() >= deadline:
                raise
        else:
            return True


def _is_owner(lock: Path, owner: str) -> bool:
    """Whether no other exporter has signed the lock file since."""
    with contextlib.suppress(OSError):
        return lock.read_bytes() in (owner.encode(), b"")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options("pipeline.exporter", ExporterOptions, arguments)
    run = RunDirectory(options.run_dir)
    try:
        if not run.path.is_dir():
            raise FileNotFoundError(
                f"{run.path} is not a directory: give the --run-dir of a run that has started"
            )
        metrics = MetricsConfig(
            exporter_port=options.port,
            exporter_certfile=options.certfile,
            exporter_keyfile=options.keyfile,
            exporter_client_cafile=options.client_cafile,
        )
        serve(run, metrics, address=options.address, targets=options.targets_dir or run.targets)
    except (OSError, ValueError) as error:
        say(f"error: {describe(error)}", stream=sys.stderr)
        return 1
    return 0
