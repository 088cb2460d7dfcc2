# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mount namespace for programs that mount filesystems: nobody holds ours, and we hold nobody's."""

from __future__ import annotations

import signal
import sys

from fleetlift_agent.devices import parse_mountinfo

from lab import namespaces


def enter_own_mounts() -> None:
    """Leave the mount namespace for a new one.

    Whoever makes a namespace meanwhile would keep our filesystems mounted after we unmounted them. For the same reason
    we let go of what others have mounted from loop devices for the moment. And who is told to end does so by way of its
    `finally`: agents, devices and mounts go with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        foreign = [mount for mount in parse_mountinfo(table.read()) if mount.source.startswith("/dev/loop")]
    # The last ones first: they may lie on others.
    for mount in reversed(foreign):
        try:
            namespaces.unmount(str(mount.mountpoint), namespaces.MNT_DETACH)
        except OSError:
            # Below one that is gone already.
            continue
