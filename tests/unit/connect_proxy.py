# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An HTTP proxy on loopback that knows nothing but CONNECT."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Opens tunnels, or answers with ``refusal``. ``carried`` counts bytes to the other side."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.refusal = ""
        self.asked: list[str] = []
        self.carried = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Request(socketserver.StreamRequestHandler):
    server: ConnectProxy

    def handle(self) -> None:
        request = self.rfile.readline().decode("ascii").split()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(" ".join(request))
        if self.server.refusal:
            self.wfile.write(f"HTTP/1.1 {self.server.refusal}\r\nContent-Length: 2\r\n\r\nno".encode())
            return
        host, _colon, port = request[1].rpartition(":")
        try:
            beyond = socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        with beyond:
            beyond.settimeout(None)
            # In one piece with what the other side says first, as proxies do.
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(beyond, self.connection), daemon=True)
            back.start()
            self._pump(self.connection, beyond)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if source is self.connection:
                    self.server.carried += len(data)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def connect_proxy() -> Iterator[ConnectProxy]:
    with ConnectProxy() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
