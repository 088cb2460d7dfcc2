# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of this source that came into use after the migration was planned: what is on them would be left behind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetlift_agent.devices import block_number, device_family, mounts_on, number_of
from fleetlift_agent.errors import AgentError

# Devices in /sys/block that are no disk of the server: in memory, made of other devices, or with exchangeable media.
# As the preflight has it (plugins/module_utils/source_facts.py).
NO_DISK = re.compile(
    r"(loop|ram|zram|sr|scd|fd|dm-|md|zd|mtdblock)[0-9]+(p[0-9]+)?|md_.*|mmcblk[0-9]+(boot[0-9]+|rpmb)"
)


class UnplannedDisks:
    """Whole disks with something mounted that neither are migrated nor were left behind on purpose.

    planned: the disks that are migrated. left_behind: paths of others that were in use when that was decided.
    """

    def __init__(
        self,
        planned: Sequence[Path],
        left_behind: Sequence[str] = (),
        *,
        sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
        mountinfo: Path = Path("/proc/self/mountinfo"),
    ) -> None:
        self._planned = {block_number(path) for path in planned}
        self._left_behind = frozenset(left_behind)
        self._sys = sys
        self._dev = dev
        self._mountinfo = mountinfo

    def in_use(self) -> list[dict[str, Any]]:
        """For each its path as `device`, and where what it holds is mounted as `mounts`."""
        found = []
        for block in sorted((self._sys / "block").iterdir()):
            device = "/dev/" + block.name.replace("!", "/")
            if NO_DISK.fullmatch(block.name) or device in self._left_behind:
                continue
            try:
                family = tuple(device_family(number_of(block / "dev"), self._sys))
                if self._planned.intersection(family):
                    # One of them, or a path to one of them (multipath).
                    continue
                mounts = mounts_on(family, self._mountinfo, sys=self._sys, dev=self._dev)
            except FileNotFoundError:
                # It went away meanwhile.
                continue
            if mounts:
                found.append({"device": device, "mounts": sorted({mount.mountpoint for mount in mounts})})
        return found

    def refuse(self) -> None:
        """Raise SOURCE_DISK_UNPLANNED when there is one."""
        found = self.in_use()
        if not found:
            return
        names = ", ".join(f"{disk['device']} (mounted at {', '.join(disk['mounts'])})" for disk in found)
        raise AgentError(
            "SOURCE_DISK_UNPLANNED",
            f"The source uses {names}, which was not in use when the migration was planned and is not copied",
            "Nothing was stopped. Run the preflight again: map the disk to one of the target, or unmount it, or accept "
            "DISK_UNMAPPED for this source to leave it behind; then replicate and cut over",
            {"disks": found},
            subject="cutover",
        )
