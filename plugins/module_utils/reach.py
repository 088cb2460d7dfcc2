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

# Something listens; nothing listens, but the answer came back; nothing came back; the way there is not known.
OPEN, REFUSED, TIMEOUT, NO_ROUTE, UNREACHABLE, FAILED = (
    "open",
    "refused",
    "timeout",
    "no_route",
    "unreachable",
    "failed",
)

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


def attempts(places: Iterable[Mapping[str, Any]], timeout: float) -> list[Attempt]:
    """Each of *places*, ``address`` and ``port``, side by side, in their order."""
    pairs = [(str(place["address"]), int(place["port"])) for place in places]
    if not pairs:
        return []
    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(lambda pair: connect(pair[0], pair[1], timeout), pairs))


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
