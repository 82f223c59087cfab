"""By which address the hosts of a job, and whoever watches it, reach each other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.config.schema import AUTO_ADDRESS, LOOPBACK, MetricsConfig

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ANY_PORT = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """The host of one rank."""

    name: str
    boot_id: str
    """Of its kernel: machines that share a name differ in it."""
    address: str
    """By which other hosts of the job reach it; empty if that cannot be known."""

    @classmethod
    def this_one(cls, rendezvous: str) -> Self:
        """With its address on the way to `rendezvous`, the HOST:PORT where the ranks meet."""
        boot_id = ""
        with contextlib.suppress(OSError):
            boot_id = _BOOT_ID.read_text().strip()
        address = address_towards(rendezvous)
        return cls(name=socket.gethostname(), boot_id=boot_id, address=address)


def address_towards(place: str) -> str:
    """This host's address on the way to `place`, HOST:PORT; empty if that cannot be known."""
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError, ValueError):
        family, kind, protocol, _, there = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(there)  # sends nothing
            return str(probe.getsockname()[0])
    return ""


def is_loopback(address: str) -> bool:
    """Whether `address`, or what this host knows by that name, is on this host alone."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(address, None) if address else []
        return any(str(place[0]).startswith("127.") or place[0] == "::1" for *_, place in found)
    return False


def check_reachable(configured: str, num_nodes: int) -> None:
    """Raise `ValueError` if several nodes are to listen where only each itself can ask.

    Prometheus would take the ranks of the node that it runs on for those of all others.
    """
    if num_nodes > 1 and configured != AUTO_ADDRESS and is_loopback(configured):
        raise ValueError(
            f"metrics.exporter_address is {configured} in a job of {num_nodes} nodes, where nobody "
            f"else reaches it; expected {AUTO_ADDRESS}, 0.0.0.0 or an address of the node "
            "(or --metrics.exporter false, to start exporters by hand)"
        )


def choose_address(configured: str, nodes: Sequence[Node], rank: int) -> str:
    """Where the exporter of the node of `rank` listens; `nodes` has the node of each rank.

    `auto` is loopback in a job on one node, and in one on several the address by which the others
    reach this one. Raises `ValueError` if Prometheus would not reach it, or would not know it from
    another.
    """
    own = nodes[rank]
    if any(node.name == own.name and node.boot_id != own.boot_id for node in nodes):
        raise ValueError(
            f"two machines of this job are both named {own.name}, and their metrics would be "
            "mixed up: give them different host names, or use --metrics.exporter false"
        )
    num_hosts = len({node.name for node in nodes})
    if all(is_loopback(node.address) for node in nodes):
        num_hosts = 1  # containers that share the network of one host may have several names
    check_reachable(configured, num_hosts)
    if configured != AUTO_ADDRESS:
        return configured
    if num_hosts == 1:
        return LOOPBACK
    others = [node.address for node in nodes if node.name != own.name]
    # Where the ranks meet, the meeting place's name may stand for loopback: look to another host.
    places = [f"{address}:{_ANY_PORT}" for address in others if _is_of_network(address)]
    for address in (own.address, *map(address_towards, places)):
        if _is_of_network(address):
            return address
    raise ValueError(
        f"{own.name} has no address by which other nodes of the job reach it, so that Prometheus "
        "could not either: give --metrics.exporter_address, or use --metrics.exporter false"
    )


def _is_of_network(address: str) -> bool:
    return address != "" and not is_loopback(address)


def exposure(metrics: MetricsConfig, address: str) -> str:
    """What exporters show to whom, for the log of a job; this node's listens at `address`."""
    is_closed = metrics.exporter_client_cafile != ""
    readers = "clients with a certificate" if is_closed else "everybody who reaches it"
    how = "over TLS" if metrics.exporter_certfile else "not encrypted"
    first = metrics.exporter_port
    port = f"the first free port from {first} on" if first else "any free port"
    return (
        f"metrics: each node serves those of its ranks on {port}, here at {address}, to {readers}, "
        f"{how}: names and folder of run and hosts, speeds, losses, accuracies"
    )
