# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One TLS connection that carries frames in both directions.

A connection has one reading thread and any number of writing threads.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from typing import Any

from fleetlift_agent import wire
from fleetlift_agent.bucket import TokenBucket
from fleetlift_agent.errors import AgentError

_UNLIMITED = TokenBucket(None)
# Frames up to this size are gathered into one write, so they do not become two TLS records.
_GATHER = 16 << 10

# struct tcp_info of include/uapi/linux/tcp.h: tcpi_unacked at byte 24, tcpi_rwnd_limited (microseconds) at 176, which
# kernels before 4.10 lack.
_TCP_INFO = struct.Struct("=24xI148xQ")
# So many acknowledgements may be held back although everything has arrived.
_LATE_ACKS = 2


class ConnectionLost(Exception):
    """The connection ended; the reason is the message. Replication continues over a new one."""


class Connection:
    """Frames over a TLS socket.

    OpenSSL forbids two threads in one session at a time, so the socket never blocks
    and each call into it holds a lock; waiting happens outside of that lock.
    peer_timeout: seconds without a byte from the peer (or without progress in writing)
    after which the connection counts as lost.
    """

    def __init__(self, sock: ssl.SSLSocket, peer_timeout: float, bucket: TokenBucket = _UNLIMITED) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._timeout = peer_timeout
        self._bucket = bucket
        self._session_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._closed = False
        self._payload = bytearray(wire.MAX_PAYLOAD)
        self._fd = sock.fileno()
        self.bytes_out = 0
        self.bytes_in = 0
        # Seconds that sending waited for the link or the limit of bandwidth, and not for a peer that is slow to read.
        self.link_seconds = 0.0

    def exchange_preambles(self) -> None:
        """Send ours, check the peer's. Raises AgentError or ConnectionLost."""
        self._write(wire.pack_preamble())
        data = bytearray(wire.PREAMBLE_SIZE)
        self.read_into(memoryview(data))
        wire.check_preamble(bytes(data))

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        """Write one frame whose payload is the concatenated parts."""
        length = sum(len(part) for part in parts)
        header = wire.pack_header(kind, length)
        with self._write_lock:
            if length <= _GATHER:
                self._write(b"".join((header, *parts)))
            else:
                self._write(b"".join((header, *parts[:-1])))
                self._write(parts[-1])

    def send_json(self, kind: int, value: dict[str, Any]) -> None:
        self.send(kind, wire.pack_json(value))

    def send_error(self, error: AgentError) -> None:
        """Tell the peer why this connection ends; a peer that is gone cannot be told."""
        try:
            self.send_json(wire.ERROR, error.record())
        except ConnectionLost:
            return

    def receive(self) -> tuple[int, memoryview]:
        """(frame type, payload); the payload is valid until the next call. Raises what the peer's ERROR says."""
        kind, length = self.receive_header()
        return kind, self.receive_payload(kind, length)

    def receive_header(self) -> tuple[int, int]:
        """(frame type, length of the payload); the payload comes next, by `receive_payload` or `read_into`."""
        header = bytearray(wire.HEADER_SIZE)
        self.read_into(memoryview(header))
        return wire.parse_header(bytes(header))

    def receive_payload(self, kind: int, length: int) -> memoryview:
        """So many bytes of the payload, valid until the next call. Raises what the peer's ERROR says."""
        payload = memoryview(self._payload)[:length]
        self.read_into(payload)
        if kind == wire.ERROR:
            raise AgentError.from_record(wire.parse_json(payload))
        return payload

    def receive_json(self, expected: int) -> dict[str, Any]:
        kind, payload = self.receive()
        if kind != expected:
            raise wire.malformed(f"frame type {kind} where {expected} belongs")
        return wire.parse_json(payload)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the connection from any thread; readers and writers get ConnectionLost."""
        self._closed = True
        try:
            # Wakes the threads that poll; the descriptor itself is closed in `release`.
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def release(self) -> None:
        """Close the descriptor, once no thread uses it any more."""
        self.close()
        self._socket.close()

    def read_into(self, view: memoryview) -> None:
        """The next bytes, as many as `view` has place for."""
        deadline = time.monotonic() + self._timeout
        while len(view):
            if self._closed:
                raise ConnectionLost("the connection was closed")
            want = select.POLLIN
            try:
                with self._session_lock:
                    got = self._socket.recv_into(view)
                if got == 0:
                    raise ConnectionLost("the peer closed the connection")
                self.bytes_in += got
                view = view[got:]
                deadline = time.monotonic() + self._timeout
                continue
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLWantWriteError:
                want = select.POLLOUT
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error
            self._wait(want, deadline)

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            piece = view[: self._bucket.piece]
            begun = time.monotonic()
            self._bucket.take(len(piece), lambda: self._closed)
            self.link_seconds += time.monotonic() - begun
            self._write_piece(piece)
            view = view[len(piece) :]

    def _write_piece(self, view: memoryview) -> None:
        deadline = time.monotonic() + self._timeout
        while len(view):
            if self._closed:
                raise ConnectionLost("the connection was closed")
            want = select.POLLOUT
            try:
                with self._session_lock:
                    sent = self._socket.send(view)
                self.bytes_out += sent
                view = view[sent:]
                deadline = time.monotonic() + self._timeout
                continue
            except ssl.SSLWantWriteError:
                pass
            except ssl.SSLWantReadError:
                want = select.POLLIN
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error
            begun = time.monotonic()
            unacknowledged, before = self._tcp_info()
            self._wait(want, deadline)
            waited = time.monotonic() - begun
            if unacknowledged <= _LATE_ACKS:
                # Nothing is on its way: a window that was full meanwhile was the peer's; had it been, the link's.
                waited -= self._tcp_info()[1] - before
            self.link_seconds += max(0.0, waited)

    def _tcp_info(self) -> tuple[int, float]:
        """Segments that are not acknowledged, and the seconds for which the peer's window was too small so far."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if len(info) < _TCP_INFO.size:
            return 0, 0.0
        unacknowledged, microseconds = _TCP_INFO.unpack(info)
        return unacknowledged, microseconds / 1e6

    def _wait(self, want: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._fd, want)
        while not self._closed:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ConnectionLost(f"nothing moved on the connection for {self._timeout:.0f} s")
            # A bounded wait also notices `close` when shutdown found the socket already broken.
            if poll.poll(min(remaining, 1.0) * 1000):
                return


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        # In TLS 1.3 the server checks the client's certificate after the client is done with its handshake.
        return f"the peer refused this side's certificate ({error.reason})"
    return error.strerror or str(error) or type(error).__name__
