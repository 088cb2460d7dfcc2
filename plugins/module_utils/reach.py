# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a source reaches the ports it will need, told apart by how the attempt ends."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

# Something listens; nothing listens, but the answer came back; nothing came back; the way there is not known.
OPEN, REFUSED, TIMEOUT, NO_ROUTE, UNREACHABLE, FAILED = (
    "open",
    "refused",
    "timeout",
    "no_route",
    "unreachable",
    "failed",
)
# Through a proxy: it would open a tunnel, but the other end does not answer, or refuses, which a proxy does not tell
# apart; it opens none; it cannot be spoken to.
PROXY_WAITS, PROXY_REFUSES, PROXY_SILENT = "proxy_waits", "proxy_refuses", "proxy_silent"
# What a proxy says when it is the other side's fault: RFC 9110, section 15.6.
_OTHER_SIDE = ("502", "503", "504")

# connect(2). Without a route in the server's own table the kernel says ENETUNREACH at once; EHOSTUNREACH comes from a
# router, or when nobody answers to ARP; EACCES and EPERM from a firewall of the server itself.
_OUTCOMES = {
    errno.ECONNREFUSED: REFUSED,
    errno.ETIMEDOUT: TIMEOUT,
    errno.ENETUNREACH: NO_ROUTE,
    errno.EHOSTUNREACH: UNREACHABLE,
}


@dataclass(frozen=True)
class Attempt:
    """One attempt to connect; ``detail`` is what the system said, empty when it succeeded.

    ``local`` is the server's own address on this way, None where there is no way.
    """

    address: str
    port: int
    outcome: str
    detail: str
    seconds: float
    local: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def answered(self) -> bool:
        """Whether something came back from the other side, if only a no."""
        return self.outcome in (OPEN, REFUSED)


def connect(address: str, port: int, timeout: float) -> Attempt:
    """Connect and hang up. Nothing is sent."""
    begun = time.monotonic()
    try:
        socket.create_connection((address, port), timeout=timeout).close()
        outcome, detail = OPEN, ""
    except socket.timeout:
        outcome, detail = TIMEOUT, f"no answer within {timeout:g} s"
    except OSError as error:
        outcome, detail = _OUTCOMES.get(error.errno or 0, FAILED), error.strerror or str(error)
    return Attempt(address, port, outcome, detail, round(time.monotonic() - begun, 3), local_address(address, port))


def local_address(address: str, port: int) -> str | None:
    """The address from which the kernel would send to *address*; nothing is sent."""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as unsent:
            unsent.connect(found[0][4])
            return str(unsent.getsockname()[0])
    except OSError:
        return None


def proxy_address(url: str) -> tuple[str, int]:
    """Host and port of the HTTP proxy at *url*. Raises ``ValueError`` for what is none, or wants a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"the proxy's URL is not one: {error}") from error
    if parts.scheme != "http" or not host or not port or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("the proxy is not of the form http://ADDRESS:PORT")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the proxy wants a user or a password, which is not supported")
    return host, port


def connect_through(proxy: tuple[str, int], address: str, port: int, timeout: float) -> Attempt:
    """Ask *proxy* for a tunnel to *address* and hang up (RFC 9110, section 9.3.6)."""
    begun = time.monotonic()
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        with socket.create_connection(proxy, timeout=timeout) as connection:
            connection.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode("ascii"))
            said = connection.makefile("rb").readline(1024).decode("ascii", "replace").strip()
    except OSError as error:
        outcome, detail = PROXY_SILENT, error.strerror or str(error)
    else:
        status = said.partition(" ")[2][:3] if said.startswith("HTTP/1.") else ""
        outcome = OPEN if status[:1] == "2" else PROXY_WAITS if status in _OTHER_SIDE else PROXY_REFUSES
        detail = "" if outcome == OPEN else said or "it ended the connection"
    return Attempt(address, port, outcome, detail, round(time.monotonic() - begun, 3))


def attempts(
    places: Iterable[Mapping[str, Any]], timeout: float, proxy: tuple[str, int] | None = None
) -> list[Attempt]:
    """Each of *places*, ``address`` and ``port``, side by side, in their order.

    Through *proxy* where the place says ``proxy`` and there is one.
    """

    def attempt(place: Mapping[str, Any]) -> Attempt:
        address, port = str(place["address"]), int(place["port"])
        if proxy and place.get("proxy"):
            return connect_through(proxy, address, port, timeout)
        return connect(address, port, timeout)

    wanted = list(places)
    if not wanted:
        return []
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(attempt, wanted))


def attempts_from(records: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """The attempts in *records*, the JSON form."""
    return [
        Attempt(
            str(each["address"]),
            int(each["port"]),
            str(each["outcome"]),
            str(each.get("detail") or ""),
            0.0,
            each.get("local"),
        )
        for each in records
    ]
