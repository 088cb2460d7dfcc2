# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many bytes per second a path carries, measured with a few of them.

Whatever accepts a TCP connection and reads what comes can be the other end, such as an RFC 863 discard service or
``socat -u TCP-LISTEN:5201,fork /dev/null``. What counts is what the other end's kernel has acknowledged: neither this
server's send buffer nor an end that stops reading makes the path look faster than it is.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from dataclasses import asdict, dataclass
from typing import Any

# include/uapi/linux/sockios.h: SIOCOUTQ is TIOCOUTQ, the bytes sent that are not acknowledged yet (tcp(7)).
TIOCOUTQ = 0x5411
PIECE = 1 << 20
# Less than this says more about the first round trips than about the path.
LEAST_BYTES = 1 << 18
CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True)
class Probe:
    """``bytes`` were acknowledged in ``seconds``; ``bytes_per_second`` is None where that is no measurement."""

    address: str | None
    port: int | None
    bytes_per_second: float | None
    bytes: int
    seconds: float
    reason: str | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def not_measured(reason: str) -> Probe:
    """The probe that was not made."""
    return Probe(None, None, None, 0, 0.0, reason)


def measure(address: str, port: int, *, limit_bytes: int, limit_seconds: float) -> Probe:
    """Send at most *limit_bytes* for at most *limit_seconds* to *address*, and count what is acknowledged."""
    try:
        connection = socket.create_connection((address, port), timeout=CONNECT_TIMEOUT)
    except OSError as error:
        return Probe(address, port, None, 0, 0.0, f"no connection: {error.strerror or error}")
    with connection:
        connection.setblocking(False)
        begun = time.monotonic()
        acknowledged, seconds, ended = _pump(connection, limit_bytes, begun + limit_seconds)
    rate = acknowledged / seconds if seconds > 0 and acknowledged >= LEAST_BYTES else None
    if rate is None and ended is None:
        ended = f"only {acknowledged} bytes were read by the other end"
    return Probe(address, port, rate, acknowledged, round(seconds, 3), ended if rate is None else None)


def _pump(connection: socket.socket, limit: int, deadline: float) -> tuple[int, float, str | None]:
    """Bytes acknowledged, the seconds they took, and why it ended early."""
    # Random, because a compressing tunnel on the way would make anything else look fast.
    piece = memoryview(os.urandom(min(PIECE, limit)))
    begun = time.monotonic()
    sent, acknowledged, last = 0, 0, begun
    while time.monotonic() < deadline:
        if sent < limit:
            wait_for = [connection], [connection]
        elif acknowledged < sent:
            wait_for = [connection], []
        else:
            break
        readable, writable, _none = select.select(wait_for[0], wait_for[1], [], 0.005)
        try:
            # Whatever the other end says is of no interest, but its end is.
            if readable and not connection.recv(65536):
                return acknowledged, last - begun, f"the other end closed the connection after {acknowledged} bytes"
            if writable:
                start = sent % len(piece)
                sent += connection.send(piece[start : start + limit - sent])
        except OSError as error:
            return acknowledged, last - begun, f"the connection ended: {error.strerror or error}"
        now_acknowledged = sent - struct.unpack("i", fcntl.ioctl(connection, TIOCOUTQ, bytes(4)))[0]
        if now_acknowledged > acknowledged:
            acknowledged, last = now_acknowledged, time.monotonic()
    # An end that stopped reading is not a slow path: the time that counts ends with the deadline.
    return acknowledged, (last if acknowledged == sent else time.monotonic()) - begun, None
