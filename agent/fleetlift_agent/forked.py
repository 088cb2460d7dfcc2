# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that was forked off does first: let go of its parent's descriptors, and end with it."""

from __future__ import annotations

import ctypes
import os
import signal

from fleetlift_agent.memory import c_library

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1


def close_all_but(keep: set[int]) -> None:
    """Close every other descriptor, above all the parent's end of a channel, whose closing tells of its death."""
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                # The one that listed the directory is closed already.
                continue


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends. Raises OSError.

    Whether it has ended before only `os.getppid()` tells.
    """
    if c_library().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
