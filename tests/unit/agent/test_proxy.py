# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication through an HTTP proxy, and what its refusals become."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from connect_proxy import ConnectProxy, connect_proxy
from fleetlift_agent.errors import AgentError
from fleetlift_agent.proxy import Proxy, connect
from loop_pair import MIB, MakePair, free_port, wait_for


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    with connect_proxy() as running:
        yield running


@pytest.mark.root
def test_everything_goes_through_the_proxy_and_arrives(make_pair: MakePair, proxy: ConnectProxy) -> None:
    pair = make_pair(8 * MIB)
    pair.disks[0][0].write(0, os.urandom(8 * MIB))
    peer = pair.sender.config["peer"]
    pair.sender.write_config(peer={**peer, "proxy": {"host": "127.0.0.1", "port": proxy.port}})
    pair.start()
    pair.replicate()
    pair.assert_identical()
    assert proxy.asked == [f"CONNECT 127.0.0.1:{peer['port']} HTTP/1.1"] * 4
    assert proxy.carried >= 8 * MIB


@pytest.mark.root
def test_proxy_that_refuses_is_named_and_tried_again(make_pair: MakePair, proxy: ConnectProxy) -> None:
    pair = make_pair(MIB)
    proxy.refusal = "403 Forbidden"
    peer = pair.sender.config["peer"]
    pair.sender.write_config(peer={**peer, "proxy": {"host": "127.0.0.1", "port": proxy.port}})
    pair.start()
    pair.sender.ctl("replicate")
    stalled = wait_for(lambda: pair.sender.state["stalled"], "the sender stalls")
    assert stalled["error"]["code"] == "PROXY_REFUSED" and "403 Forbidden" in stalled["error"]["cause"]
    proxy.refusal = ""
    pair.sender.phase("in_sync")
    pair.assert_identical()


def ask(proxy: ConnectProxy, port: int) -> socket.socket:
    return connect("127.0.0.1", port, 5.0, Proxy("127.0.0.1", proxy.port))


def test_first_bytes_behind_the_answer_belong_to_the_tunnel(proxy: ConnectProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            client, _address = listening.accept()
            with client:
                client.sendall(b"hello")

        threading.Thread(target=greet, daemon=True).start()
        with ask(proxy, listening.getsockname()[1]) as tunnel, tunnel.makefile("rb") as stream:
            assert stream.read(5) == b"hello"


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "301 Moved", "garbage"])
def test_refusal_of_the_proxy_itself_is_an_error_with_the_next_step(proxy: ConnectProxy, status: str) -> None:
    proxy.refusal = status
    with pytest.raises(AgentError) as caught:
        ask(proxy, free_port())
    assert caught.value.record()["code"] == "PROXY_REFUSED" and status in caught.value.record()["cause"]


def test_other_side_that_is_not_there_yet_is_a_lost_connection(proxy: ConnectProxy) -> None:
    with pytest.raises(OSError, match="502"):
        ask(proxy, free_port())


def test_proxy_that_hangs_up_or_never_ends_its_answer_is_a_lost_connection() -> None:
    for answer in (b"", b"HTTP/1.1 200", b"x" * (64 << 10)):
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def serve(said: bytes = answer, server: socket.socket = listening) -> None:
                client, _address = server.accept()
                with client:
                    client.recv(4096)
                    try:
                        client.sendall(said)
                    except OSError:
                        return

            threading.Thread(target=serve, daemon=True).start()
            with pytest.raises(OSError, match="proxy ended|reset"):
                connect("127.0.0.1", 1, 5.0, Proxy("127.0.0.1", listening.getsockname()[1]))


def test_address_of_version_6_is_written_in_brackets(proxy: ConnectProxy) -> None:
    proxy.refusal = "403 Forbidden"
    with pytest.raises(AgentError):
        connect("2001:db8::1", 443, 5.0, Proxy("127.0.0.1", proxy.port))
    assert proxy.asked == ["CONNECT [2001:db8::1]:443 HTTP/1.1"]
