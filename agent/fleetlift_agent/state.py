# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""state.json: what a daemon is doing, replaced atomically, and the same object for `status`."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent import __version__

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_INTERVAL = 1.0


def read_boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically. The directory is a tmpfs, so nothing needs to be synced."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(value, stream)
    temporary.replace(path)


class State:
    """The daemon's state. Threads `update` it; a ticker writes it once a second while it changes."""

    def __init__(self, path: Path, migration: str, role: str, phase: str, disks: list[dict[str, Any]]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        now = time.time()
        self._value: dict[str, Any] = {
            "schema": 1,
            "agent_version": __version__,
            "migration": migration,
            "role": role,
            "pid": os.getpid(),
            "boot_id": read_boot_id(),
            "started": now,
            "updated": now,
            "phase": phase,
            "stalled": None,
            "error": None,
            "disks": disks,
            "progress": {
                "pass": 0,
                "kind": None,
                "bytes_total": sum(disk["size"] for disk in disks),
                "bytes_done": 0,
                "bytes_sent": 0,
                "rate": 0,
                "eta_seconds": None,
            },
            "totals": {
                "bytes_read": 0,
                "bytes_sent": 0,
                "bytes_wire": 0,
                "bytes_skipped": 0,
                "bytes_zero": 0,
                "bytes_free": 0,
            },
            "passes": [],
            "features": None,
            "connections": 0,
            "bandwidth_limit": None,
            "cutover": None,
            "sealed": None,
            "read_back": None,
            "sync": None,
            "used_blocks": [],
            "unplanned": [],
        }

    def update(self, **changes: Any) -> None:
        """Set top-level entries and write the file."""
        with self._lock:
            self._value.update(changes)
            self._write()

    def touch(self, **changes: Any) -> None:
        """Set top-level entries that the next tick writes: for counters."""
        with self._lock:
            self._value.update(changes)

    def get(self, name: str) -> Any:
        with self._lock:
            return self._value[name]

    def snapshot(self) -> dict[str, Any]:
        """A copy that no thread changes any more."""
        with self._lock:
            copy: dict[str, Any] = json.loads(json.dumps(self._value))
            return copy

    def start_ticker(self, refresh: Callable[[], None]) -> None:
        """Write once a second, after `refresh` has put in the current counters."""
        threading.Thread(target=self._tick, args=(refresh,), name="state", daemon=True).start()

    def close(self) -> None:
        self._stopping.set()
        with self._lock:
            self._write()

    def _tick(self, refresh: Callable[[], None]) -> None:
        while not self._stopping.wait(_INTERVAL):
            try:
                refresh()
            except Exception:  # Whoever watches would take the last state for the present one.
                log.exception("the state could not be brought up to date")
            with self._lock:
                self._write()

    def _write(self) -> None:
        self._value["updated"] = time.time()
        write_json(self._path, self._value)
