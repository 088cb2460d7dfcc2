# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP connection, directly or through an HTTP proxy's tunnel (RFC 9110, section 9.3.6)."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from fleetlift_agent.errors import AgentError

# What a proxy says before the tunnel begins is a few lines.
_MOST_ANSWER = 16 << 10


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that tunnels with CONNECT and wants no password."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def connect(host: str, port: int, timeout: float, proxy: Proxy | None) -> socket.socket:
    """A connected socket. *timeout* is in seconds, for each step. Raises OSError, or AgentError for a proxy's no."""
    if proxy is None:
        return socket.create_connection((host, port), timeout=timeout)
    raw = socket.create_connection((proxy.host, proxy.port), timeout=timeout)
    try:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raw.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode("ascii"))
        _expect_tunnel(_answer(raw), proxy, place)
    except BaseException:
        raw.close()
        raise
    return raw


def _answer(raw: socket.socket) -> bytes:
    """The proxy's answer up to its empty line. Byte by byte: what follows belongs to the tunnel."""
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        if not byte or len(answer) > _MOST_ANSWER:
            raise ConnectionError("the proxy ended the connection before the tunnel was there")
        answer += byte
    return answer


def _expect_tunnel(answer: bytes, proxy: Proxy, place: str) -> None:
    said = answer.split(b"\r\n", 1)[0].decode("ascii", "replace")
    version, _space, status = said.partition(" ")
    if version.startswith("HTTP/1.") and status[:1] == "2":
        return
    if version.startswith("HTTP/1.") and status[:3] in ("502", "503", "504"):
        # It could not reach the other side, which may come.
        raise ConnectionError(f"the proxy {proxy} says: {said}")
    raise AgentError(
        "PROXY_REFUSED",
        f"The proxy {proxy} opens no tunnel to {place}: {said[:200]!r}",
        "Have the proxy allow CONNECT to that address and port without a password, or reach the landing directly "
        "(without fleetlift_proxy)",
        subject="connection",
    )
