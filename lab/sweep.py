# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Give back everything that a lab took from the machine, whether its daemon lives, died or was killed.

Only what the lab's ledger lists, what lies in its state directory, and the processes in its network
namespaces: nothing else can be the lab's.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from lab import loopdisk
from lab.command import run
from lab.control import call
from lab.errors import LabError
from lab.freezing import parse_mountinfo, thaw
from lab.ledger import Holdings, Ledger
from lab.mounts import remove_tree, unmount_under
from lab.place import Place
from lab.processes import ProcessIdentity, identify, is_alive, kill_and_wait

STOP_TIMEOUT = 60.0


def take_down(place: Place) -> bool:
    """Remove the lab at ``place`` completely; False when there was none."""
    if not place.exists():
        return False
    holdings = Ledger(place.ledger).read()
    _ask_daemon(place, holdings)
    sweep(place, holdings)
    return True


def _ask_daemon(place: Place, holdings: Holdings) -> None:
    try:
        call(place.socket, "stop", timeout=10)
    except LabError:
        # It is not there, or not able to answer: what follows does without it.
        return
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(is_alive(process) for process in holdings.processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def sweep(place: Place, holdings: Holdings) -> None:
    """Kill, unmount, detach and delete what is listed and what lies in the state directory."""
    names = [name for name in holdings.namespaces if Path("/run/netns", name).exists()]
    inside = [p for name in names for p in processes_in(name)]
    loops = {os.stat(loop.path).st_rdev for loop in loopdisk.attached_under(place.directory)}
    processes = list(dict.fromkeys([*(p for p in holdings.processes if is_alive(p)), *inside]))
    stop_processes(processes, loops)
    unmount_under(place.directory)
    for loop in loopdisk.attached_under(place.directory):
        loopdisk.detach(loop)
    for name in names:
        run(["ip", "netns", "delete", name])
    for path in holdings.cgroups:
        if Path(path).is_dir():
            Path(path).rmdir()
    remove_tree(place.directory)


def processes_in(namespace: str) -> list[ProcessIdentity]:
    """Return the processes whose network namespace is ``namespace``."""
    pids = [int(pid) for pid in run(["ip", "netns", "pids", namespace]).split()]
    found = [identify(pid) for pid in pids]
    return [process for process in found if process is not None and process.pid != os.getpid()]


def stop_processes(processes: list[ProcessIdentity], devices: set[int]) -> None:
    """Kill ``processes``; tasks that wait for a frozen filesystem on ``devices`` are let go first."""
    for process in processes:
        if is_alive(process):
            try:
                os.kill(process.pid, signal.SIGSTOP)
            except ProcessLookupError:
                continue
    for process in processes:
        thaw_mounts(process, devices)
    kill_and_wait(processes)


def thaw_mounts(process: ProcessIdentity, devices: set[int]) -> None:
    """Thaw every filesystem on ``devices`` that ``process`` has mounted in its namespace."""
    try:
        text = Path(f"/proc/{process.pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError, OSError):
        return  # It is gone, or on its way: it has no mounts any more.
    for entry in parse_mountinfo(text):
        if entry.device not in devices:
            continue
        try:
            fd = os.open(f"/proc/{process.pid}/root{entry.mountpoint}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue  # The same: its root directory has been given up.
        try:
            thaw(fd)
        finally:
            os.close(fd)
