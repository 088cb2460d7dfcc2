# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets go where the rules let them, as fast as was bought, and never out of the lab."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.cloud.hypervisor import PacketRule
from lab.command import run
from lab.errors import LabError
from lab.namespaces import in_netns
from lab.network import API_ADDRESS, COS_ADDRESS, chain_rules, shaper

from .conftest import MIB, Bench, eventually

pytestmark = pytest.mark.root


def outcome(namespace: str, address: str, port: int) -> str:
    """Try to connect from a namespace: "open", "refused", "blocked" (no answer) or "unreachable"."""

    def connect() -> str:
        try:
            socket.create_connection((address, port), timeout=0.5).close()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "blocked"
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return "unreachable"
            raise
        return "open"

    return in_netns(namespace, connect)


@contextmanager
def listening(namespace: str, port: int) -> Iterator[socket.socket]:
    def listen() -> socket.socket:
        return socket.create_server(("0.0.0.0", port))

    with in_netns(namespace, listen) as server:
        yield server


def test_security_group_rules_decide_in_order(bench: Bench) -> None:
    port = bench.network.connect("ins-1", ["10.97.0.11", "203.0.113.11"], "10.97.0.1", guarded=True)
    source = bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
    controller = bench.network.controller
    with listening(port.namespace, 443), listening(port.namespace, 8080):
        assert outcome(controller, "203.0.113.11", 443) == "blocked"
        bench.network.set_policies(
            "ins-1",
            [
                PacketRule("tcp", ((443, 443),), "10.96.0.11/32", "DROP"),
                PacketRule("tcp", ((443, 443), (8000, 8100)), "0.0.0.0/0", "ACCEPT"),
                PacketRule("all", (), "0.0.0.0/0", "DROP"),
                PacketRule("tcp", (), "::/0", "ACCEPT"),
            ],
        )
        assert outcome(controller, "203.0.113.11", 443) == "open"
        assert outcome(controller, "10.97.0.11", 8080) == "open"
        assert outcome(controller, "203.0.113.11", 22) == "blocked"
        assert outcome(source.namespace, "203.0.113.11", 443) == "blocked"
        assert outcome(source.namespace, "203.0.113.11", 8080) == "open"
        bench.network.set_policies("ins-1", [])
        assert outcome(controller, "203.0.113.11", 443) == "blocked"


def test_egress_rules_decide_what_an_instance_reaches(bench: Bench) -> None:
    one = bench.network.connect("ins-1", ["10.97.0.11"], "10.97.0.1", guarded=True)
    two = bench.network.connect("ins-2", ["10.97.0.12"], "10.97.0.1", guarded=True)
    everything = [PacketRule("all", (), "0.0.0.0/0", "ACCEPT")]
    bench.network.set_policies("ins-2", everything)
    with listening(two.namespace, 443), listening(one.namespace, 22), listening(bench.network.router, 80):
        bench.network.set_policies("ins-1", everything, [PacketRule("tcp", ((443, 443),), "10.97.0.12/32", "ACCEPT")])
        assert outcome(one.namespace, "10.97.0.12", 443) == "open"
        assert outcome(one.namespace, COS_ADDRESS, 80) == "blocked"
        bench.network.set_policies("ins-1", everything, [])
        assert outcome(one.namespace, "10.97.0.12", 443) == "blocked"
        # What answers a connection from outside still passes.
        assert outcome(bench.network.controller, "10.97.0.11", 22) == "open"


def test_cos_answers_the_controller_and_the_region_but_no_source(bench: Bench) -> None:
    source = bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
    instance = bench.network.connect("ins-1", ["10.97.0.11"], "10.97.0.1", guarded=True)
    with listening(bench.network.router, 80):
        assert outcome(bench.network.controller, COS_ADDRESS, 80) == "open"
        assert outcome(instance.namespace, COS_ADDRESS, 80) == "open"
        assert outcome(source.namespace, COS_ADDRESS, 80) == "blocked"
        assert outcome(bench.network.controller, API_ADDRESS, 80) == "open"
        assert outcome(instance.namespace, API_ADDRESS, 80) == "blocked"


def test_sources_are_open_to_the_controller_and_to_each_other_but_not_to_the_cloud(bench: Bench) -> None:
    web = bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
    other = bench.network.connect("db", ["10.96.0.12"], "10.96.0.1", guarded=False)
    instance = bench.network.connect("ins-1", ["10.97.0.11"], "10.97.0.1", guarded=True)
    with listening(web.namespace, 22):
        assert outcome(bench.network.controller, "10.96.0.11", 22) == "open"
        assert outcome(other.namespace, "10.96.0.11", 22) == "open"
        assert outcome(instance.namespace, "10.96.0.11", 22) == "blocked"
    assert outcome(web.namespace, "10.98.0.2", 22) == "blocked"


def test_api_is_for_the_controller_only(bench: Bench) -> None:
    web = bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
    with listening(bench.network.router, 80):
        assert outcome(bench.network.controller, "10.98.0.10", 80) == "open"
        assert outcome(web.namespace, "10.98.0.10", 80) == "blocked"


def test_nothing_leads_out_of_the_lab_nor_in(bench: Bench) -> None:
    web = bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
    for namespace in (bench.network.controller, web.namespace, bench.network.router):
        assert outcome(namespace, "192.0.2.1", 80) in ("unreachable", "blocked")
        links = run(["ip", "-n", namespace, "-brief", "link"])
        assert all("@" not in line or "@if" in line for line in links.splitlines())
    assert run(["ip", "-n", bench.network.router, "route", "show", "default"]) == ""
    before = run(["ip", "-brief", "link"])
    assert "ctl" not in before and "eth0@" not in [line.split()[0] for line in before.splitlines()]
    assert "10.96.0." not in run(["ip", "route"]) and "10.98.0." not in run(["ip", "route"])


def test_pulled_cable_cuts_the_machine_off_until_it_is_plugged_again(bench: Bench) -> None:
    port = bench.network.connect("ins-1", ["10.97.0.11", "203.0.113.11"], "10.97.0.1", guarded=True)
    bench.network.set_policies("ins-1", [PacketRule("tcp", (), "0.0.0.0/0", "ACCEPT")])
    with listening(port.namespace, 443):
        bench.network.set_link("ins-1", up=False)
        assert not bench.network.port("ins-1").up
        assert outcome(bench.network.controller, "203.0.113.11", 443) in ("blocked", "unreachable")
        bench.network.set_link("ins-1", up=True)
        eventually(lambda: outcome(bench.network.controller, "203.0.113.11", 443) == "open", "the way is open again")


def transfer(bench: Bench, namespace: str, size: int) -> float:
    """Send ``size`` bytes from the controller to a namespace and return bytes per second."""
    received: list[int] = []
    with listening(namespace, 443) as server:

        def drain() -> None:
            connection, _ = server.accept()
            with connection:
                total = 0
                while data := connection.recv(MIB):
                    total += len(data)
                received.append(total)

        thread = threading.Thread(target=drain)
        thread.start()

        def send() -> float:
            start = time.monotonic()
            with socket.create_connection(("203.0.113.11", 443)) as connection:
                connection.sendall(bytes(size))
                connection.shutdown(socket.SHUT_WR)
                thread.join()
            return time.monotonic() - start

        seconds = in_netns(bench.network.controller, send)
    assert received == [size]
    return size / seconds


def test_bandwidth_is_what_was_bought(bench: Bench) -> None:
    port = bench.network.connect("ins-1", ["10.97.0.11", "203.0.113.11"], "10.97.0.1", guarded=True)
    bench.network.set_policies("ins-1", [PacketRule("tcp", (), "0.0.0.0/0", "ACCEPT")])
    bench.network.set_bandwidth("ins-1", 40)
    limited = transfer(bench, port.namespace, 4 * MIB)
    assert 2.5e6 < limited < 6e6, limited
    bench.network.set_bandwidth("ins-1", 0)
    assert transfer(bench, port.namespace, 64 * MIB) > 2 * limited


def test_disconnected_machine_leaves_no_link_and_no_rule(bench: Bench) -> None:
    bench.network.connect("ins-1", ["10.97.0.11"], "10.97.0.1", guarded=True)
    bench.network.disconnect("ins-1")
    with pytest.raises(LabError, match="no machine 'ins-1'"):
        bench.network.port("ins-1")
    rules = run(["ip", "netns", "exec", bench.network.router, "nft", "list", "ruleset"])
    assert "to_g" not in rules
    bench.network.connect("ins-1", ["10.97.0.11"], "10.97.0.1", guarded=True)


def test_foreign_namespace_is_refused_and_left_alone(bench: Bench) -> None:
    name = f"fl-{bench.place.name}-web"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with pytest.raises(LabError, match="exists already and this lab did not make it"):
            bench.network.connect("web", ["10.96.0.11"], "10.96.0.1", guarded=False)
        assert name not in bench.ledger.read().namespaces
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_rules_are_written_for_nftables() -> None:
    assert chain_rules(
        [
            PacketRule("tcp", ((80, 80), (443, 450)), "192.0.2.0/24", "ACCEPT"),
            PacketRule("udp", (), "0.0.0.0/0", "DROP"),
            PacketRule("icmp", (), "0.0.0.0/0", "ACCEPT"),
            PacketRule("all", (), "fe80::/10", "ACCEPT"),
            PacketRule("all", (), "0.0.0.0/0", "DROP"),
        ]
    ) == [
        "ip saddr 192.0.2.0/24 tcp dport { 80, 443-450 } accept",
        "meta l4proto udp drop",
        "meta l4proto icmp accept",
        "drop",
    ]


def test_burst_grows_with_the_rate() -> None:
    assert "131072" in shaper("eth0", 10)
    assert str(1000 * 1_000_000 // 800) in shaper("eth0", 1000)
