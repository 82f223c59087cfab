"""Where the exporters of a job listen."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from pipeline.config.schema import LOOPBACK, MetricsConfig
from pipeline.metrics.addresses import (
    Node,
    address_towards,
    choose_address,
    exposure,
    is_loopback,
)
from pipeline.ranks.world import World
from pipeline.train.publishing import exporter_address
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.rank_jobs import call_on_ranks


def node(name: str, address: str, boot_id: str | None = None) -> Node:
    return Node(name=name, boot_id=boot_id or f"boot of {name}", address=address)


ONE = [node("n1", "127.0.0.1"), node("n1", "127.0.0.1")]
CONTAINERS = [node("one", "127.0.0.1"), node("two", "127.0.0.1")]
"""Two names in the network of one host."""

SEVERAL = [node("n1", "10.0.0.1"), node("n1", "10.0.0.1"), node("n2", "10.0.0.2")]


@pytest.mark.parametrize(
    ("configured", "nodes", "expected"),
    [
        ("auto", ONE, [LOOPBACK] * 2),
        ("auto", SEVERAL, ["10.0.0.1", "10.0.0.1", "10.0.0.2"]),
        ("0.0.0.0", SEVERAL, ["0.0.0.0"] * 3),
        ("192.0.2.7", SEVERAL, ["192.0.2.7"] * 3),
        ("127.0.0.1", ONE, ["127.0.0.1"] * 2),
        ("auto", CONTAINERS, [LOOPBACK] * 2),
        ("127.0.0.1", CONTAINERS, ["127.0.0.1"] * 2),
    ],
)
def test_several_nodes_listen_where_they_are_reached(
    configured: str, nodes: list[Node], expected: list[str]
) -> None:
    assert [choose_address(configured, nodes, rank) for rank in range(len(nodes))] == expected


@pytest.mark.parametrize("configured", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_refused_for_several_nodes(configured: str) -> None:
    for rank in range(3):
        with pytest.raises(ValueError, match=f"exporter_address is {configured} in a job of 2 nod"):
            choose_address(configured, SEVERAL, rank)


def test_nodes_that_cannot_be_reached_or_told_apart_are_refused() -> None:
    nodes = [node("n1", "127.0.1.1"), node("n2", "")]
    for rank in range(2):
        with pytest.raises(ValueError, match=f"n{rank + 1} has no address by which other nodes"):
            choose_address("auto", nodes, rank)
    twins = [node("vm", "10.0.0.1", "one boot"), node("vm", "10.0.0.2", "another")]
    with pytest.raises(ValueError, match="two machines of this job are both named vm"):
        choose_address("auto", twins, 0)


def test_the_way_to_a_place_begins_at_an_address_of_this_host() -> None:
    assert address_towards("127.0.0.1:9") == "127.0.0.1"
    assert address_towards("[::1]:9") in ("::1", "")  # without IPv6
    assert address_towards("") == address_towards("no port") == ""


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.1", "no.such.host.invalid"])
def test_what_is_no_loopback(address: str) -> None:
    assert not is_loopback(address)


def test_what_is_exposed_is_said_in_one_line() -> None:
    open_to_all = exposure(MetricsConfig(), "10.0.0.1")
    assert "from 9753 on, here at 10.0.0.1, to everybody who reaches it, not enc" in open_to_all
    assert open_to_all.startswith(
        "metrics: each node serves those of its ranks on the first free port from 9753 on, here at"
    )
    assert "ranks on any free port, here at n1, to" in exposure(
        MetricsConfig(exporter_port=0), "n1"
    )
    encrypted = MetricsConfig(exporter_certfile="a.pem", exporter_keyfile="b.pem")
    assert "everybody who reaches it, over TLS: names" in exposure(encrypted, "n1")
    closed = dataclasses.replace(encrypted, exporter_client_cafile="c.pem")
    assert "clients with a certificate, over TLS: names" in exposure(closed, "n1")
    assert "\n" not in open_to_all


CHOICES = (
    MetricsConfig(enabled=False),
    MetricsConfig(exporter=False),
    MetricsConfig(exporter_address="0.0.0.0"),
    MetricsConfig(),
)


def choose_and_go_on(world: World) -> tuple[str, list[int]]:
    address = exporter_address(CHOICES[world.rank], world)
    return address, world.all_gather_object(world.rank)


@pytest.mark.slow
def test_ranks_whose_metrics_differ_stay_in_step() -> None:
    found = call_on_ranks(len(CHOICES), choose_and_go_on)
    assert [address for address, _ in found] == [LOOPBACK, LOOPBACK, "0.0.0.0", LOOPBACK]
    assert [after for _, after in found] == [[0, 1, 2, 3]] * len(CHOICES)


IN_A_NETWORK = """\
ip link add eth0 type veth peer name eth1
ip addr add 10.78.0.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
"$@"
"""
CHOICE = """\
from pipeline.metrics.addresses import Node, choose_address
nodes = ("n1", "127.0.1.1"), ("n2", "10.78.0.2")
print(choose_address("auto", [Node(name=n, boot_id="", address=a) for n, a in nodes], 0))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_where_the_ranks_meet_the_way_to_another_node_decides() -> None:
    """Debian gives a host's own name the address 127.0.1.1, and the ranks meet at that name."""
    words = ["unshare", "--net", "sh", "-ec", IN_A_NETWORK, "sh", sys.executable, "-c", CHOICE]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout) == (0, "10.78.0.1\n"), done.stderr
