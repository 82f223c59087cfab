"""Serves the metrics of a run's ranks on this node to Prometheus, as one target.

    python -m pipeline.exporter --run-dir RUN [--port 9753] [--address 127.0.0.1]

One exporter serves a run on a node, whoever starts another, and no other run (see
`pipeline.metrics.pages`). It outlives its ranks by
`--linger-seconds`, so that their last values are scraped, and marks a dead one with
`alexnet_rank_up 0`. While it serves, a `file_sd` target tells Prometheus its address.
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

from data_prep.shard_set.fields import at_least
from data_prep.shard_set.files import describe, remove_leftovers
from data_prep.shard_set.options import Named, read_options, words_of
from pipeline.config.schema import MetricsConfig, Port
from pipeline.metrics.addresses import LOOPBACK
from pipeline.metrics.discovery import ExporterLock, Target, drop_unanswered, location_of
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.outcomes import NodeOutcomes
from pipeline.metrics.pages import Identity, application, explained, hash_certificates, listen
from pipeline.run.directory import RunDirectory

_CLIENT_SECONDS = 5.0
_FIRST_RANK_SECONDS = 60.0
"""That may pass before the first rank publishes."""
_POLL_SECONDS = 0.5

_DEFAULTS = MetricsConfig()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExporterOptions:
    """Serve the metrics of a run's ranks on this node to Prometheus."""

    run_dir: Path
    """The run's directory."""
    port: Port = _DEFAULTS.exporter_port
    """The first port to try."""
    address: str | None = None
    """0.0.0.0 to serve other hosts too; an exporter of this run and node at another address then
    leaves. If not given: wherever one serves already, else on loopback."""
    certfile: Annotated[Path | None, Named("--certfile", "FILE")] = None
    """Certificate (PEM) to serve over TLS with; an exporter of this run and node with another, or
    without, then leaves. If not given: no TLS."""
    keyfile: Annotated[Path | None, Named("--keyfile", "FILE")] = None
    """Private key (PEM) of the certificate."""
    client_cafile: Annotated[Path | None, Named("--client-cafile", "FILE")] = None
    """Serve only who shows a certificate of one of these authorities (PEM)."""
    targets_dir: Path | None = None
    """Where Prometheus looks for file_sd targets; if not given, beside the run directory."""
    linger_seconds: Annotated[float, at_least(0)] = _DEFAULTS.exporter_linger_seconds
    """How long the last values of ranks that are gone are served."""


def start_exporter(run: RunDirectory, metrics: MetricsConfig, address: str | None) -> None:
    """Start this node's exporter as a process of its own, which outlives the caller.

    Call it once a node. It never raises: an exporter that cannot start is logged, and the training
    goes on without it.
    """
    options = ExporterOptions(
        run_dir=run.path.resolve(),
        port=metrics.exporter_port,
        linger_seconds=metrics.exporter_linger_seconds,
        address=address,
        certfile=_path(metrics.exporter_certfile),
        keyfile=_path(metrics.exporter_keyfile),
        client_cafile=_path(metrics.exporter_client_cafile),
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


def _path(location: str) -> Path | None:
    return Path(location) if location else None


def _announce_until_idle(
    collector: NodeCollector,
    lock: ExporterLock,
    target: Target,
    linger_seconds: float,
    deadline: float,
    stop: threading.Event,
) -> None:
    """Keep the target announced until `stop`, or until the ranks are gone for the linger.

    Or until a successor, which listens elsewhere, asks for the lock.
    """
    started = collector.last_start()
    while not stop.wait(_POLL_SECONDS) and not lock.is_wanted_by_another():
        target.announce()
        before, started = started, collector.last_start()
        if started != before or collector.has_running_ranks():  # one may come and go in between
            deadline = time.monotonic() + linger_seconds
        elif time.monotonic() >= deadline:
            return


def serve(run: RunDirectory, metrics: MetricsConfig, *, address: str | None, targets: Path) -> None:
    """Serve the run's ranks on this node until they are gone, or SIGTERM or SIGINT comes.

    Returns at once if another exporter does so already as asked for here; one at another `address`,
    or with other certificates, has to leave. Raises `OSError` if it cannot listen.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host = socket.gethostname()
    run.metrics.mkdir(exist_ok=True)
    with contextlib.closing(ExporterLock(run.metrics / f"exporter-{host}.lock")) as lock:
        scheme = "https" if metrics.exporter_certfile else "http"
        place = location_of(address, 0, host).removesuffix("0") if address else ""
        address = address or LOOPBACK
        with explained(address, metrics):
            certificates = hash_certificates(metrics)  # before another one leaves for them
        end = f", certificates {certificates}" if certificates else ""
        if not lock.take_unless_served(f"{scheme}://{place}" if place or certificates else "", end):
            sys.stdout.write(f"{run.path} is already served: {lock.owner}\n")
            return
        identity = Identity(run=run.name, run_dir=str(run.path.resolve()), node=host)
        collector = NodeCollector(run.metrics, host)
        registry = CollectorRegistry()
        registry.register(collector)
        registry.register(NodeOutcomes(run, host))
        registry.register(identity)
        with explained(address, metrics):
            port = listen(address, metrics, application(registry, identity))
        socket.setdefaulttimeout(
            _CLIENT_SECONDS
        )  # a client that says nothing holds up the next one
        location = location_of(address, port, host)
        target = Target(
            targets, _target_name(run, targets), identity, address=location, scheme=scheme
        )
        server = f"{scheme}://{location}/metrics, process {os.getpid()}{end}"
        lock.owner = server
        sys.stdout.write(f"serving {run.path} on {server}, target {target.path}\n")
        with contextlib.suppress(OSError):  # another user's
            remove_leftovers(targets, {target.path.name})
        linger_seconds = metrics.exporter_linger_seconds
        # Before the target is there: whoever sees it may end the ranks at once.
        first_seconds = 0.0 if collector.has_running_ranks() else _FIRST_RANK_SECONDS
        deadline = time.monotonic() + max(linger_seconds, first_seconds)
        target.announce()
        # Of others that were here, or of this run's on nodes that it has lost.
        for line in drop_unanswered(targets, ("node", host), ("run_dir", identity.run_dir)):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        _announce_until_idle(collector, lock, target, linger_seconds, deadline, stop)
        target.withdraw()  # before the lock ends with the process: a successor writes the same file


def _target_name(run: RunDirectory, targets: Path) -> str:
    """That of the run; where runs of several folders are announced, one that tells them apart."""
    if targets.resolve() == run.targets:
        return run.name
    return f"{run.name}-{hashlib.sha256(bytes(run.path.resolve())).hexdigest()[:8]}"


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
            exporter_linger_seconds=options.linger_seconds,
            exporter_certfile=str(options.certfile or ""),
            exporter_keyfile=str(options.keyfile or ""),
            exporter_client_cafile=str(options.client_cafile or ""),
        )
        serve(run, metrics, address=options.address, targets=options.targets_dir or run.targets)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {describe(error)}\n")
        return 1
    return 0
