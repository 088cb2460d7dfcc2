# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes of the lab, named so that a recycled process id is never mistaken for one of them."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError


@dataclass(frozen=True)
class ProcessIdentity:
    """A process id and the time it started, in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    start: int


def start_time(pid: int) -> int | None:
    """Return when ``pid`` started in clock ticks since boot, or None when it has ended, reaped by its parent or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that runs as ``pid`` now."""
    start = start_time(pid)
    return None if start is None else ProcessIdentity(pid, start)


def is_alive(process: ProcessIdentity) -> bool:
    """Whether this very process still exists."""
    return start_time(process.pid) == process.start


def stop_tree(pid: int) -> list[ProcessIdentity]:
    """Stop ``pid`` and all its descendants, whatever session they have gone to, and return them."""
    found: list[ProcessIdentity] = []
    waiting = [pid]
    while waiting:
        process = identify(waiting.pop())
        if process is None:
            continue
        try:
            os.kill(process.pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        found.append(process)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
            waiting += [int(child) for child in children.read_text(encoding="ascii").split()]
    return found


def kill_and_wait(processes: list[ProcessIdentity], *, sig: int = signal.SIGKILL, timeout: float = 15) -> None:
    """Signal each process and wait until all are gone; LabError names those that stay."""
    waiting: dict[int, tuple[int, ProcessIdentity]] = {}
    poller = select.poll()
    for process in processes:
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        if not is_alive(process):
            os.close(handle)
            continue
        signal.pidfd_send_signal(handle, sig)
        waiting[handle] = (handle, process)
        poller.register(handle, select.POLLIN)
    deadline = time.monotonic() + timeout
    try:
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                stuck = ", ".join(str(process.pid) for _, process in waiting.values())
                raise LabError(
                    f"processes did not end within {timeout:g} s: {stuck}", "Look at what they wait for, try again"
                )
            for handle, _ in poller.poll(left * 1000):
                poller.unregister(handle)
                os.close(handle)
                del waiting[handle]
    finally:
        for handle in waiting:
            os.close(handle)
