# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Thaw filesystems, and cut their power: the ioctls of linux/fs.h.

A machine may be switched off while its filesystems are frozen. Tasks that wait for a frozen
filesystem cannot be killed, so whoever ends a machine has to thaw them first; shutting the
filesystem down before that keeps the thawed tasks from writing anything more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
# FS_IOC_SHUTDOWN: _IOR('X', 125, __u32); 2 = do not flush the log either.
FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2
CAN_SHUT_DOWN = ("ext4", "xfs")


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/PID/mountinfo (proc(5))."""

    device: int
    mountpoint: str
    filesystem: str
    source: str
    read_only: bool


def _unescape(field: str) -> str:
    # The kernel writes space, tab, newline and backslash as octal escapes.
    return os.fsdecode(field.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1"))


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Return the mounts in a mountinfo text, in its order."""
    entries = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        filesystem, source, options = right.split(" ", 2)
        major, _, minor = fields[2].partition(":")
        entries.append(
            MountEntry(
                device=os.makedev(int(major), int(minor)),
                mountpoint=_unescape(fields[4]),
                filesystem=filesystem,
                source=_unescape(source),
                read_only="ro" in options.split(","),
            )
        )
    return entries


def thaw(fd: int) -> bool:
    """Thaw the filesystem that ``fd`` is on; False when it was not frozen."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def freeze(fd: int) -> None:
    """Freeze the filesystem that ``fd`` is on."""
    fcntl.ioctl(fd, FIFREEZE, 0)


def cut_power(fd: int) -> None:
    """Stop the filesystem that ``fd`` is on at once: nothing of it reaches its disk from now on."""
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
