# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fence around a source, in network namespaces of its own: never in the one that the tests run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent.errors import AgentError
from fleetlift_agent.fence import RECORD, TABLE, Fence, Passage, ruleset
from loop_pair import MIB, MakePair, Pair, remove_trace

from lab.namespaces import in_netns

AGENT = Path(__file__).resolve().parents[3] / "agent"
SOURCE, CONTROLLER, CLIENT = "192.0.2.1", "192.0.2.2", "192.0.2.3"
SERVER = f"""
import socket
listeners = [socket.create_server(("{SOURCE}", port)) for port in (22, 80)]
print("ready", flush=True)
input()
"""
CALL = """
import json, sys
from pathlib import Path
from fleetlift_agent.errors import AgentError
from fleetlift_agent.fence import Fence, Passage
from fleetlift_agent.quiesce import Quiesce
fence = Fence(Path(sys.argv[1]))
passages = [Passage("192.0.2.2/32", 22)]
try:
    result = eval(sys.argv[2])
except AgentError as error:
    result = error.code
print(json.dumps(result))
"""


class Wire:
    """A source and two others on one wire."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = [f"flt{os.getpid()}{role}" for role in ("source", "controller", "client")]

    def make(self) -> None:
        for name, address in zip(self.names, (SOURCE, CONTROLLER, CLIENT)):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            if address != SOURCE:
                run(
                    *("ip", "link", "add", "eth0", "netns", name, "type", "veth"),
                    *("peer", "name", f"p{address[-1]}", "netns", self.names[0]),
                )
                run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                run("ip", "-n", name, "link", "set", "eth0", "up")
        source = self.names[0]
        run("ip", "-n", source, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", source, "addr", "add", f"{SOURCE}/24", "dev", "br0")
        for port in ("p2", "p3"):
            run("ip", "-n", source, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", source, "link", "set", "br0", "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def reaches(self, namespace: str, port: int, address: str = SOURCE) -> bool:
        code = f"import socket; socket.create_connection(('{address}', {port}), 1.5).close()"
        words = ["ip", "netns", "exec", namespace, sys.executable, "-c", code]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def on_source(self, expression: str) -> object:
        words = ["ip", "netns", "exec", self.names[0], sys.executable, "-c", CALL, str(self.directory), expression]
        environment = {**os.environ, "PYTHONPATH": str(AGENT)}
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
        return json.loads(done.stdout)


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Wire(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def test_fenced_source_answers_the_controller_s_ssh_and_nobody_else(wire: Wire) -> None:
    source, controller, client = wire.names
    words = ["ip", "netns", "exec", source, sys.executable, "-c", SERVER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        assert wire.reaches(client, 80) and wire.reaches(client, 22)
        assert wire.on_source("fence.check(passages)") is None
        assert wire.reaches(client, 80), "a check changes nothing"

        wire.on_source("fence.close(passages, ['nginx'])")
        assert wire.on_source("fence.stands") is True
        assert wire.reaches(controller, 22)
        assert not wire.reaches(controller, 80)
        assert not wire.reaches(client, 22)
        assert not wire.reaches(client, 80)
        assert wire.reaches(source, 80), "the source reaches itself"

        assert wire.on_source("fence.open()") == ["nginx"]
        assert wire.reaches(client, 80)
        assert wire.on_source("fence.open()") is None
        server.communicate(b"\n")


def test_fenced_source_reaches_nobody(wire: Wire) -> None:
    source, _controller, client = wire.names
    code = f"import socket; s = socket.create_server(('{CLIENT}', 80)); print('ready', flush=True); input()"
    words = ["ip", "netns", "exec", client, sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        assert wire.reaches(source, 80, CLIENT)
        wire.on_source("fence.close(passages, [])")
        assert not wire.reaches(source, 80, CLIENT)
        server.communicate(b"\n")


def test_fence_of_an_agent_that_died_is_taken_down_by_another(wire: Wire) -> None:
    wire.on_source("fence.close(passages, [])")
    assert wire.on_source("Quiesce([], Path(sys.argv[1])).give_back([], 5).unfenced") is True
    assert wire.on_source("fence.stands") is False
    assert not (wire.directory / RECORD).exists()


def test_source_without_nftables_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        Fence(tmp_path, nft=str(tmp_path / "none")).check([Passage("192.0.2.2/32", 22)])
    assert caught.value.code == "FENCE_UNAVAILABLE"


def test_rules_replace_what_stood_before_and_drop_by_default() -> None:
    text = ruleset([Passage("192.0.2.2/32", 22), Passage("2001:db8::/64", 2222)])
    assert text.startswith(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
    assert text.count("policy drop") == 3
    assert "ip saddr 192.0.2.2/32 tcp dport 22 accept" in text
    assert "ip6 daddr 2001:db8::/64 tcp sport 2222 accept" in text


@pytest.mark.parametrize(
    "value",
    [{}, {"address": "0.0.0.0/0", "port": 22}, {"address": "x", "port": 22}, {"address": "192.0.2.2", "port": 0}, "a"],
)
def test_passage_for_everybody_or_nobody_is_refused(value: object) -> None:
    with pytest.raises(AgentError, match="ARGUMENT_INVALID"):
        Passage.parse(value)


@pytest.fixture
def fenced_pair(make_pair: MakePair) -> Iterator[tuple[Pair, str]]:
    """A pair in a network namespace of its own, cut over and fenced, and the namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    namespace = f"flt{os.getpid()}pair"
    run("ip", "netns", "add", namespace)
    try:
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        pair = make_pair(16 * MIB)
        in_netns(namespace, pair.start)
        pair.replicate()
        pair.prepare(fence=[{"address": "192.0.2.2", "port": 22}])
        pair.sender.ctl("release", action="fence")
        assert pair.sender.cutover_phase("fenced")["verified"]
        yield pair, namespace
    finally:
        run("ip", "netns", "delete", namespace)


def stands(namespace: str) -> bool:
    words = ["ip", "netns", "exec", namespace, "nft", "list", "table", "inet", TABLE]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def test_fenced_source_stays_so_until_it_is_given_back_and_is_followed_again(fenced_pair: tuple[Pair, str]) -> None:
    pair, namespace = fenced_pair
    assert stands(namespace)
    assert pair.sender.refused("replicate", refresh=True)["code"] == "SOURCE_FENCED"
    assert pair.sender.refused("abort")["code"] == "CUTOVER_COMMITTED"
    assert pair.sender.ctl("release", action="fence")["cutover"]["phase"] == "fenced"
    assert pair.sender.ctl("give_back")["unfenced"]
    assert not stands(namespace)
    assert pair.sender.cutover_phase("released")
    assert not pair.sender.ctl("give_back")["unfenced"]
    pair.disks[0][0].write(0, b"written after the way back" * 100)
    pair.refresh()
    pair.assert_identical()


def test_fence_outlives_its_agent_and_the_next_one_takes_it_down(fenced_pair: tuple[Pair, str]) -> None:
    pair, namespace = fenced_pair
    pair.sender.kill()
    assert stands(namespace)
    remove_trace(pair)
    in_netns(namespace, pair.sender.start)
    assert stands(namespace)
    assert pair.sender.ctl("give_back")["unfenced"]
    assert not stands(namespace)
