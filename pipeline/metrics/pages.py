"""What an exporter answers, and to whom: its metrics are those of one run on one node.

Prometheus asks with the query of the target's file (`?run=…&node=…&exporter=…`). An exporter that
another one's target leads to refuses: such a target is down, and never shows another run's numbers.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, Metric, make_wsgi_app, start_http_server

from data_prep.shard_set.families import collected
from data_prep.shard_set.files import as_text, describe
from pipeline.config.schema import MetricsConfig
from pipeline.metrics.declared import EXPORTER_INFO
from pipeline.metrics.front_page import render_page
from pipeline.metrics.outcomes import read_run_status
from pipeline.run.directory import RunDirectory

_NEIGHBOUR_PORTS = 10
_PLAIN = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_POLICY = "default-src 'none'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Whose metrics an exporter serves."""

    run: str
    run_dir: str
    node: str
    exporter: str = field(default_factory=lambda: secrets.token_hex(8))
    """Drawn anew by each exporter: an earlier one of the same run has another."""

    def __str__(self) -> str:
        return f"run {self.run} ({self.run_dir}) on node {self.node}"

    def __post_init__(self) -> None:
        for name in ("run", "run_dir", "node"):  # a path may hold bytes that no text has
            object.__setattr__(self, name, as_text(getattr(self, name)))

    @property
    def labels(self) -> dict[str, str]:
        """Those that Prometheus gives to all that it finds here."""
        return {"run": self.run, "run_dir": self.run_dir, "node": self.node}

    def differences(self, query: Mapping[str, list[str]]) -> list[str]:
        """What a scrape expects and this is not, each as 'name=value'."""
        own = {"run": self.run, "node": self.node, "exporter": self.exporter}
        return [
            f"{name}={value}" for name in own for value in query.get(name, []) if value != own[name]
        ]

    def collect(self) -> list[Metric]:
        """The same in the metrics, under names that no label of a target has."""
        served = {f"served_{name}": value for name, value in self.labels.items()}
        family = collected(EXPORTER_INFO)
        family.add_sample(EXPORTER_INFO.name, served, 1)
        return [family]


def application(
    registry: CollectorRegistry, identity: Identity, run: RunDirectory
) -> WSGIApplication:
    """`/metrics`, to those who ask for this exporter or for none; `/healthz`; and a page at `/`.

    The latter two answer 503 with a sentence while the metrics of `run` cannot be read.
    """
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            differences = identity.differences(query)
            if not differences:
                return metrics(environ, start_response)
            status, kind = "421 Misdirected Request", _PLAIN
            text = f"here is {identity}, not {', '.join(differences)}: the target is out of date\n"
        elif path in ("/", "/healthz"):
            status, kind, text = "200 OK", _PLAIN, "ok\n"
            try:
                run.path.stat()
                next(run.metrics.iterdir(), None)
                if path == "/":
                    now = time.time()
                    found = read_run_status(run, identity.node, now)
                    kind, text = _HTML, render_page(str(identity), found, identity.node, now)
            except OSError as error:
                status = "503 Service Unavailable"
                text = f"the metrics of {identity} cannot be read: {describe(error)}\n"
        else:
            status, kind = "404 Not Found", _PLAIN
            text = f"there is no {path}: expected /, /metrics or /healthz\n"
        start_response(status, [("Content-Type", kind), ("Content-Security-Policy", _POLICY)])
        return [text.encode()]

    return answer


@contextlib.contextmanager
def explained(address: str, metrics: MetricsConfig) -> Iterator[None]:
    """Add what can be done to the text of an `OSError`."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot listen on {address}:{metrics.exporter_port}: {error.strerror or error}; "
            "give an --address of this host, a --port from 1024 to 65535, and certificates that "
            "can be read, if any"
        ) from None


def check_certificates(metrics: MetricsConfig) -> None:
    """Raise `OSError` if they cannot be used."""
    if metrics.exporter_certfile:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(metrics.exporter_certfile, metrics.exporter_keyfile)
        if metrics.exporter_client_cafile:
            context.load_verify_locations(metrics.exporter_client_cafile)


def listen(address: str, metrics: MetricsConfig, app: WSGIApplication) -> WSGIServer:
    """Serve `app` on the configured port, or the next free one, or any.

    Raises `OSError` if the address is not one of this host, or the port is not allowed.
    """
    port, authorities = metrics.exporter_port, metrics.exporter_client_cafile
    for candidate in [*range(port, min(port + _NEIGHBOUR_PORTS, 65536)), 0]:
        try:
            server, _ = start_http_server(
                candidate,
                address,
                CollectorRegistry(),  # of nothing, for the moment before the next line
                certfile=metrics.exporter_certfile or None,
                keyfile=metrics.exporter_keyfile or None,
                client_cafile=authorities or None,
                client_auth_required=authorities != "",
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or candidate == 0:
                raise
        else:
            server.set_app(app)
            return server
    raise AssertionError("the last candidate serves or raises")
