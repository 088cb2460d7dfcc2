# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that should not be there, peers of another version, and networks that come and go."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from fleetlift_agent import wire
from fleetlift_agent.connection import Connection
from fleetlift_agent.daemon import listen
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import Range
from fleetlift_agent.hashing import load_hash
from fleetlift_agent.tls import TlsFiles, load_identity
from loop_pair import MIB, Agent, MakePair, Pair, free_port, make_certificate, wait_for

pytestmark = pytest.mark.root


def identity_of(agent: Agent, *, server: bool) -> Any:
    tls = agent.directory / "tls"
    return load_identity(TlsFiles(tls / "cert.pem", tls / "key.pem", tls / "peer.pem"), server=server)


@contextmanager
def connected(pair: Pair) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the receiver with the sender's own identity, before any byte of the protocol."""
    port = pair.receiver.config["listen"]["port"]
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    with closing(identity_of(pair.sender, server=False).wrap(raw)) as wrapped:
        yield wrapped


def error_of(wrapped: ssl.SSLSocket) -> dict[str, Any]:
    """The record in the receiver's ERROR frame, after which it must close the connection."""
    data = b""
    while piece := wrapped.recv(65536):
        data += piece
    assert data[: len(wire.MAGIC)] == wire.MAGIC
    kind, length = wire.parse_header(data[wire.PREAMBLE_SIZE : wire.PREAMBLE_SIZE + wire.HEADER_SIZE])
    assert kind == wire.ERROR
    payload = data[wire.PREAMBLE_SIZE + wire.HEADER_SIZE :]
    assert len(payload) == length
    return wire.parse_json(payload)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (struct.pack(">8sHH", wire.MAGIC, 99, 0), "PROTOCOL_VERSION_MISMATCH"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "WIRE_MALFORMED"),
        (wire.pack_preamble() + b"\xff" * 64, "WIRE_MALFORMED"),
        (wire.pack_preamble() + struct.pack(">BBHI", wire.HELLO, 0, 0, 0xFFFFFFFF), "WIRE_MALFORMED"),
        (wire.pack_preamble() + struct.pack(">BBHI", wire.HELLO, 0, 0, 4) + b"nope", "WIRE_MALFORMED"),
        (wire.pack_preamble() + struct.pack(">BBHI", wire.HELLO, 0, 0, 2) + b"{}", "WIRE_MALFORMED"),
        (wire.pack_preamble() + struct.pack(">BBHI", wire.PING, 0, 0, 0), "WIRE_MALFORMED"),
    ],
)
def test_receiver_names_the_error_and_survives(make_pair: MakePair, sent: bytes, code: str) -> None:
    pair = make_pair(4 * MIB)
    pair.receiver.start()
    with connected(pair) as wrapped:
        wrapped.sendall(sent)
        assert error_of(wrapped)["code"] == code
    assert pair.receiver.state["error"]["code"] == code
    assert pair.receiver.ctl("status")["phase"] == "listening"
    pair.sender.start()
    pair.replicate()
    pair.assert_identical()
    assert "Traceback" not in pair.receiver.log


@pytest.mark.parametrize("change", [{"migration": "other"}, {"disks": []}])
def test_sender_with_another_plan_is_refused(make_pair: MakePair, change: dict[str, Any]) -> None:
    pair = make_pair(4 * MIB)
    if "disks" in change:
        change = {"disks": [{**pair.sender.config["disks"][0], "target_serial": "disk-other"}]}
    pair.sender.write_config(**change)
    pair.start()
    pair.sender.ctl("replicate")
    assert pair.sender.phase("failed")["error"]["code"] == "PEER_PLAN_DIFFERS"
    assert pair.disks[0][1].file.stat().st_blocks == 0


def test_stranger_without_a_certificate_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    port = pair.receiver.config["listen"]["port"]
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        wrapped = context.wrap_socket(raw)
        wrapped.sendall(wire.pack_preamble())
        with pytest.raises(ssl.SSLError):
            wrapped.recv(1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(os.urandom(4096))
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass
    pair.replicate()
    pair.assert_identical()


@pytest.mark.parametrize("liar", ["sender", "receiver"])
def test_peer_with_another_certificate_gets_no_byte(make_pair: MakePair, liar: str) -> None:
    pair = make_pair(4 * MIB)
    pair.disks[0][0].write(0, os.urandom(MIB))
    agent: Agent = getattr(pair, liar)
    certificate, key = make_certificate(agent.directory, "liar")
    certificate.replace(agent.directory / "tls" / "cert.pem")
    key.replace(agent.directory / "tls" / "key.pem")
    pair.start()
    pair.sender.ctl("replicate")
    stalled = wait_for(lambda: pair.sender.state["stalled"], "the sender stalls")
    assert "certificate" in stalled["reason"]
    assert pair.disks[0][1].file.stat().st_blocks == 0
    assert pair.sender.state["totals"]["bytes_wire"] == 0
    assert pair.sender.ctl("stop")["was_running"]


def test_receiver_refuses_tls_1_2(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.receiver.start()
    identity = identity_of(pair.sender, server=False)
    identity.context.minimum_version = ssl.TLSVersion.TLSv1_2
    identity.context.maximum_version = ssl.TLSVersion.TLSv1_2
    raw = socket.create_connection(("127.0.0.1", pair.receiver.config["listen"]["port"]), timeout=10)
    with closing(raw), pytest.raises(AgentError, match="TLS_HANDSHAKE_FAILED"):
        identity.wrap(raw)


def test_receiver_of_another_version_fails_the_sender(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    identity = identity_of(pair.receiver, server=True)
    with closing(listen("127.0.0.1", pair.receiver.config["listen"]["port"])) as listener:
        pair.sender.start()
        pair.sender.ctl("replicate")
        raw, _address = listener.accept()
        with closing(identity.wrap(raw)) as wrapped:
            wrapped.sendall(struct.pack(">8sHH", wire.MAGIC, wire.PROTOCOL + 1, 0))
            state = pair.sender.phase("failed")
    assert state["error"]["code"] == "PROTOCOL_VERSION_MISMATCH"
    assert state["error"]["evidence"] == {"peer": wire.PROTOCOL + 1, "own": wire.PROTOCOL}


class Wire:
    """A TCP relay that can fall silent, as a cut network does: no reset, no close, no answer."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target = target_port
        self._listener = listen("127.0.0.1", self.port)
        self._cut = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def heal(self) -> None:
        """New connections pass; the old ones stay dead."""
        self._cut = threading.Event()

    def _accept(self) -> None:
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:
                return
            cut = self._cut
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
            self._sockets.append(near)
            if cut.is_set():
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets.append(far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, cut), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, cut: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                if cut.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        for each in [self._listener, *self._sockets]:
            each.close()


def test_cut_network_stalls_and_continues(make_pair: MakePair) -> None:
    pair = make_pair(32 * MIB)
    pair.disks[0][0].write(0, os.urandom(32 * MIB))
    relay = Wire(pair.receiver.config["listen"]["port"])
    with closing(relay):
        for agent in (pair.sender, pair.receiver):
            agent.write_config(peer_timeout=2)
        pair.sender.write_config(peer={"host": "127.0.0.1", "port": relay.port})
        pair.start()
        pair.sender.ctl("replicate", bandwidth_limit=16 * MIB)
        wait_for(lambda: pair.sender.state["progress"]["bytes_done"] >= 8 * MIB, "a quarter is durable")
        relay.cut()
        stalled = wait_for(lambda: pair.sender.state["stalled"], "the sender stalls")
        assert stalled["reason"]
        durable = pair.sender.state["progress"]["bytes_done"]
        wait_for(lambda: pair.receiver.state["connections"] == 0, "the receiver dropped the dead connections")
        assert pair.sender.state["progress"]["bytes_done"] == durable
        relay.heal()
        pair.sender.ctl("set", bandwidth_limit=None)
        state = pair.sender.phase("in_sync", seconds=40)
        assert state["stalled"] is None
        pair.assert_identical()
        # What was on the wire when it was cut is sent again, and nothing else.
        assert state["totals"]["bytes_sent"] <= 32 * MIB + (32 * MIB - durable)
        assert state["totals"]["bytes_sent"] <= 32 * MIB + 16 * MIB


def test_unreachable_landing_stops_no_service(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    pair.replicate()
    pair.receiver.kill()
    pair.sender.ctl("cutover", services=[], freeze=False)
    wait_for(lambda: pair.sender.state["stalled"], "the sender says why it waits")
    assert pair.sender.state["cutover"]["services_stopped"] == []
    aborted = pair.sender.ctl("abort")
    assert aborted["cutover"]["phase"] == "aborted"
    assert aborted["cutover"]["thawed_by"] is None


@pytest.mark.parametrize("lie", ["content", "digest"])
def test_content_without_the_announced_hash_is_never_written(make_pair: MakePair, lie: str) -> None:
    pair = make_pair(MIB)
    pair.receiver.start()
    algorithm = load_hash("sha256")
    content = os.urandom(MIB)
    hashes = algorithm.leaves(memoryview(content))
    right = {"digest": algorithm.digest(hashes), "content_hash": algorithm.digest(hashes)}
    disks = [{"id": "d0", "size": MIB, "target_serial": "disk-0"}]
    hello = {
        "session": "0" * 32,
        "connection": 0,
        "migration": "web1",
        "disks": disks,
        "features": {"hash": ["sha256"], "compression": ["none"]},
    }
    for wrong, code in (({lie if lie == "digest" else "content_hash": b"x" * 32}, "CONTENT_MISMATCH"), ({}, None)):
        with connected(pair) as wrapped:
            connection = Connection(wrapped, 10)
            connection.exchange_preambles()
            connection.send_json(wire.HELLO, hello)
            connection.receive_json(wire.WELCOME)
            key = wire.ExtentKey(0, 0)
            write = wire.Write(key=key, ranges=(Range(0, 256, False),), codec=0, raw_length=MIB, **{**right, **wrong})
            connection.send(wire.WRITE, write.pack(), content)
            if code is None:
                assert connection.receive()[0] == wire.ACK
                assert pair.disks[0][1].content() == content
            else:
                with pytest.raises(AgentError, match=code):
                    connection.receive()
                assert pair.disks[0][1].content() == bytes(MIB)
        wait_for(lambda: pair.receiver.state["phase"] == "listening", "the session is over")
