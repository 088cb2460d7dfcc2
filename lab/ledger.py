# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab takes from the machine, written down before it is taken.

One JSON object per line in the state directory. Whoever clears up after a crash removes what is
listed here and nothing else: a name that looks like the lab's but is not listed is not the lab's.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from lab.processes import ProcessIdentity


def boot_id() -> str:
    """Return the id of this boot of the machine: process ids mean nothing in another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Holdings:
    """Everything a ledger lists."""

    namespaces: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    processes: tuple[ProcessIdentity, ...] = ()


@dataclass
class Ledger:
    """The append-only list in ``path``."""

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def namespace(self, name: str) -> None:
        """Note a network namespace that is about to be made."""
        self._append({"kind": "namespace", "name": name})

    def cgroup(self, path: str) -> None:
        """Note a control group that is about to be made."""
        self._append({"kind": "cgroup", "name": path})

    def process(self, process: ProcessIdentity) -> None:
        """Note a process that waits to be told what to do."""
        self._append({"kind": "process", "pid": process.pid, "start": process.start, "boot": boot_id()})

    def _append(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry) + "\n"
        with self._lock:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)

    def read(self) -> Holdings:
        """Return what is listed; a last line cut short by a crash was never acted on."""
        if not self.path.exists():
            return Holdings()
        entries = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                entries.append(json.loads(line))
        now = boot_id()
        return Holdings(
            namespaces=tuple(dict.fromkeys(e["name"] for e in entries if e["kind"] == "namespace")),
            cgroups=tuple(dict.fromkeys(e["name"] for e in entries if e["kind"] == "cgroup")),
            processes=tuple(
                ProcessIdentity(e["pid"], e["start"]) for e in entries if e["kind"] == "process" and e["boot"] == now
            ),
        )
