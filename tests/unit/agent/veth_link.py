# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two network namespaces with one wire between them: it can be pulled, made slow, and counts what passes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from block_devices import run

from lab.network import shaper

# Of the addresses that RFC 2544 sets aside for measuring network devices.
SOURCE, TARGET = "198.18.0.1", "198.18.0.2"
_MTU = 1500


class Link:
    """The wire between the namespaces `source` and `target`, whose interfaces are both called wire."""

    def __init__(self, name: str) -> None:
        self.source, self.target = f"{name}-s", f"{name}-t"

    def inside(self, namespace: str, *command: str | Path) -> list[str]:
        """The command as it runs in the namespace; its mounts and processes are those of everybody."""
        return ["nsenter", f"--net=/run/netns/{namespace}", "--", *(str(part) for part in command)]

    def set(self, *, up: bool) -> None:
        """Plug the wire in, or pull it."""
        run("ip", "-n", self.source, "link", "set", "wire", "up" if up else "down")

    def shape(self, mbps: int) -> None:
        """Let no more than `mbps` Mbit/s pass in either direction, frames of at most 1514 bytes each."""
        for namespace in (self.source, self.target):
            # Segments that are cut only behind the counters would hide their headers.
            run("ip", "-n", namespace, "link", "set", "wire", "gso_max_segs", "1")
            run("tc", "-n", namespace, *shaper("wire", mbps))

    def passed(self) -> tuple[int, int]:
        """Bytes that left the source and the target so far, Ethernet headers included."""
        return self._sent(self.source), self._sent(self.target)

    def _sent(self, namespace: str) -> int:
        line = run("ip", "-n", namespace, "-s", "-o", "link", "show", "dev", "wire")
        return int(line.split("TX:")[1].split("\\")[1].split()[0])


@contextmanager
def veth_link() -> Iterator[Link]:
    """A link of its own, removed in the end."""
    link = Link(f"fl-{os.getpid()}")
    made = []
    try:
        for namespace in (link.source, link.target):
            run("ip", "netns", "add", namespace)
            made.append(namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        ends = ("name", "wire", "mtu", str(_MTU), "netns")
        run("ip", "link", "add", *ends, link.source, "type", "veth", "peer", *ends, link.target)
        for namespace, address in ((link.source, SOURCE), (link.target, TARGET)):
            run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", "wire")
            run("ip", "-n", namespace, "link", "set", "wire", "up")
        yield link
    finally:
        for namespace in made:
            run("ip", "netns", "delete", namespace)
