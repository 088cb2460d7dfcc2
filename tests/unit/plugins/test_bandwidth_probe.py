# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The path is measured by what the other end acknowledges, with a bounded number of bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ansible_collections.fleetlift.cvm.plugins.module_utils.bandwidth_probe import Probe, measure, not_measured

MIB = 1 << 20


@contextmanager
def listener(serve: Callable[[socket.socket], None], *, receive_buffer: int | None = None) -> Iterator[int]:
    """A TCP server that hands its one connection to *serve*; yields its port."""
    with socket.socket() as server:
        if receive_buffer:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        server.bind(("127.0.0.1", 0))
        server.listen(1)

        def accept() -> None:
            connection, _address = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join()


def probe(port: int, limit_bytes: int = 4 * MIB, limit_seconds: float = 20.0) -> Probe:
    return measure("127.0.0.1", port, limit_bytes=limit_bytes, limit_seconds=limit_seconds)


def test_a_path_is_measured_with_no_more_bytes_than_allowed() -> None:
    received = 0

    def discard(connection: socket.socket) -> None:
        nonlocal received
        while piece := connection.recv(65536):
            received += len(piece)

    with listener(discard) as port:
        found = probe(port)
    assert found.bytes == received == 4 * MIB
    assert found.reason is None
    assert found.bytes_per_second is not None and found.bytes_per_second > 0


def test_an_end_that_does_not_read_is_no_measurement() -> None:
    done = threading.Event()
    with listener(lambda _connection: done.wait() and None, receive_buffer=4096) as port:
        found = probe(port, limit_seconds=0.3)
        done.set()
    assert found.bytes_per_second is None
    assert "were read by the other end" in str(found.reason)


def test_an_end_that_hangs_up_is_no_measurement() -> None:
    with listener(lambda connection: connection.shutdown(socket.SHUT_RDWR)) as port:
        found = probe(port)
    assert found.bytes_per_second is None
    assert "closed" in str(found.reason) or "ended" in str(found.reason)


def test_nothing_that_listens_is_no_measurement() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = probe(unused.getsockname()[1])
    assert (found.bytes_per_second, found.bytes) == (None, 0)
    assert found.reason == "no connection: Connection refused"
    assert not_measured("why").record()["reason"] == "why"
