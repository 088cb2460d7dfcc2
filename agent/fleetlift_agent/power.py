# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Power a server off at once, without touching its disks again."""

from __future__ import annotations

import ctypes
import os

from .errors import AgentError
from .memory import c_library

# include/uapi/linux/reboot.h: LINUX_REBOOT_CMD_POWER_OFF.
RB_POWER_OFF = 0x4321FEDC


def power_off() -> None:
    """Switch this server off with reboot(2).

    Nothing is synced: the filesystems are frozen, everything is on the disk, and a sync would wait for the thaw for
    ever. Returns only inside a PID namespace that is not the first one, where the namespace's init is ended instead.
    Raises :class:`AgentError` POWER_OFF_FAILED.
    """
    if c_library().reboot(ctypes.c_int(RB_POWER_OFF)) != 0:
        number = ctypes.get_errno()
        raise AgentError(
            "POWER_OFF_FAILED",
            f"the kernel refused to power this server off: {os.strerror(number)}",
            "Switch the source off by hand before its users reach it again: it is behind the target from now on",
            subject="power",
        )
