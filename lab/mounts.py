# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is mounted below a directory, and how to delete the directory without deleting what is mounted there."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.command import run
from lab.errors import LabError
from lab.freezing import parse_mountinfo


def mounted_under(directory: Path) -> list[str]:
    """Return the mount points at or below ``directory`` in this process's mount namespace, innermost last."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return [entry.mountpoint for entry in parse_mountinfo(text) if Path(entry.mountpoint).is_relative_to(directory)]


def unmount_under(directory: Path) -> None:
    """Unmount what is mounted at or below ``directory``, innermost first."""
    for mountpoint in reversed(mounted_under(directory)):
        run(["umount", mountpoint])


def remove_tree(directory: Path) -> None:
    """Delete ``directory``; refuse while anything is mounted in it."""
    left = mounted_under(directory)
    if left:
        raise LabError(f"{left[0]} is still mounted", f"Unmount it, then try again: umount {left[0]}")
    shutil.rmtree(directory)
