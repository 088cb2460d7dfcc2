# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Linux namespaces and mounts by system call.

The machines are built by processes that have already left the host's root, so they cannot run
``mount`` or ``nsenter``; Python 3.11 has no ``os.setns``. Numbers: linux/sched.h, linux/mount.h.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from lab.freezing import parse_mountinfo

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24

_libc = ctypes.CDLL(None, use_errno=True)
Result = TypeVar("Result")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces in ``flags`` for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that ``fd`` refers to."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, filesystem: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if filesystem is None else filesystem.encode(),
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {source} on {target}",
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"unmount {target}")


def pivot_into(new_root: str) -> None:
    """Make ``new_root`` the root directory of this mount namespace and forget the old one."""
    os.chdir(new_root)
    # Both arguments may be the same directory: the old root is then stacked on the new one (pivot_root(2)).
    _check(_libc.pivot_root(b".", b"."), f"pivot_root into {new_root}")
    unmount(".", MNT_DETACH)
    os.chdir("/")


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl {option}")


def in_netns(name: str, action: Callable[[], Result]) -> Result:
    """Run ``action`` inside the network namespace ``name`` and return what it returns.

    Sockets made there stay in that namespace; only a thread of its own enters it.
    """

    def enter() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)

    return _in_a_thread(f"netns-{name}", enter, action)


def in_private_mounts(action: Callable[[], Result]) -> Result:
    """Run ``action`` where what it mounts is seen by itself and its children only, and return what it returns.

    A mount namespace that anybody makes meanwhile is a copy of the host's, and would keep a disk mounted that is
    mounted there, for as long as it lives. For the same reason the copy made here lets go of all loop devices.
    """

    def enter() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            entries = parse_mountinfo(mounts.read())
        for entry in reversed(entries):
            if entry.source.startswith("/dev/loop"):
                unmount(entry.mountpoint, MNT_DETACH)

    return _in_a_thread("private-mounts", enter, action)


def _in_a_thread(name: str, enter: Callable[[], None], action: Callable[[], Result]) -> Result:
    results: list[Result] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            enter()
            results.append(action())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
