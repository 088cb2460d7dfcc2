# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether an SSH server answers, found out without logging in."""

from __future__ import annotations

import socket
import time

# RFC 4253, section 4.2: a server may send other lines before its identification, which begins with this.
IDENTIFICATION = b"SSH-"
LONGEST_GREETING = 8192


def read_banner(address: str, port: int, *, timeout: float = 5.0) -> str:
    """The identification line of the SSH server at *address*, for example ``SSH-2.0-OpenSSH_9.2``.

    Raises ``OSError`` when nothing listens or nothing that looks like SSH answers within *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    greeting = b""
    with socket.create_connection((address, port), timeout=timeout) as connection:
        while len(greeting) < LONGEST_GREETING:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"connected, but no SSH identification within {timeout:g} s")
            connection.settimeout(left)
            chunk = connection.recv(1024)
            if not chunk:
                raise ConnectionError(f"the connection was closed after {greeting[:60]!r}")
            greeting += chunk
            for line in greeting.splitlines(keepends=True):
                if line.startswith(IDENTIFICATION) and line.endswith(b"\n"):
                    return line.strip().decode("ascii", "replace")
    raise ConnectionError(f"what answered is not SSH: {greeting[:60]!r}")
