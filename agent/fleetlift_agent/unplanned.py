# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of this source that came into use after the migration was planned: what is on them would be left behind."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar

from fleetlift_agent.devices import (
    MountRecord,
    appearance_of,
    block_number,
    device_family,
    mounted_btrfs,
    number_of,
    parse_mountinfo,
    serial_of,
    sysfs_of,
)
from fleetlift_agent.errors import AgentError

# Devices in /sys/block that are no disk of the server: in memory, made of other devices, or with exchangeable media.
# As the preflight has it (plugins/module_utils/source_facts.py).
NO_DISK = re.compile(
    r"(loop|ram|zram|sr|scd|fd|dm-|md|zd|mtdblock)[0-9]+(p[0-9]+)?|md_.*|mmcblk[0-9]+(boot[0-9]+|rpmb)"
)


# Documentation/ABI/testing/sysfs-fs-btrfs
_BTRFS = Path("/sys/fs/btrfs")
# A device may vanish while it is looked at.
_ATTEMPTS = 5


_T = TypeVar("_T")


def _patiently(look: Callable[[], _T]) -> _T:
    for _attempt in range(_ATTEMPTS - 1):
        try:
            return look()
        except OSError:
            time.sleep(0.05)
    return look()


class UnplannedDisks:
    """Whole disks with something mounted that neither are migrated nor were left behind on purpose.

    planned: the disks that are migrated. left_behind: paths of others, as they are now. A disk that is given such a
    path later is another one, unless its serial is the same; and one that joins a volume of what is migrated cannot be
    left behind any more. Nothing is read from any disk, for some never answer.
    """

    def __init__(
        self,
        planned: Sequence[Path],
        left_behind: Sequence[str] = (),
        *,
        sys: Path = Path("/sys"),
        mountinfo: Path = Path("/proc/self/mountinfo"),
    ) -> None:
        self._sys = sys
        self._mountinfo = mountinfo
        self._planned = frozenset(number for number in map(block_number, planned) if number is not None)
        # With the volumes that it had in common with what is migrated when that was decided.
        self._left_behind = _patiently(lambda: self._known(left_behind))

    def in_use(self) -> list[dict[str, Any]]:
        """For each its path as `device`, and where what it holds is mounted as `mounts`."""
        return _patiently(self._look)

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

    def _look(self) -> list[dict[str, Any]]:
        mounted = self._mounted()
        carried = self._carried()
        found = []
        for device, number in self._disks():
            family = self._family(number)
            mounts = {point for member in family for point in mounted.get(member, ())}
            # Not one of the migrated disks, nor another path to one (multipath).
            if mounts and not family & self._planned and not self._stays(number, family & carried):
                found.append({"device": device, "mounts": sorted(mounts)})
        return found

    def _known(self, devices: Sequence[str]) -> dict[int | str, frozenset[int]]:
        carried = self._carried()
        return {
            name: self._family(number) & carried
            for device, number in self._disks()
            if device in devices
            for name in self._names(number)
        }

    def _names(self, number: int) -> list[int | str]:
        """What a disk is known by: as what it appeared, and its serial, if it has one."""
        serial = serial_of(sysfs_of(number, self._sys))
        return [appearance_of(number, self._sys), *([serial] if serial else [])]

    def _stays(self, number: int, shared: frozenset[int]) -> bool:
        return any(name in self._left_behind and shared <= self._left_behind[name] for name in self._names(number))

    def _disks(self) -> list[tuple[str, int]]:
        blocks = sorted((self._sys / "block").iterdir())
        return [
            ("/dev/" + block.name.replace("!", "/"), number_of(block / "dev"))
            for block in blocks
            # The paths that NVMe hides behind its multipath have no device of their own.
            if not NO_DISK.fullmatch(block.name) and (block / "dev").exists()
        ]

    def _family(self, number: int) -> frozenset[int]:
        return frozenset(device_family(number, self._sys))

    def _carried(self) -> frozenset[int]:
        """What is made of the migrated disks."""
        return frozenset().union(*map(self._family, self._planned)) - self._planned

    def _mounted(self) -> dict[int, set[str]]:
        """The mountpoints by the number of each device that a mounted filesystem lies on."""
        mounted: dict[int, set[str]] = {}
        for record in parse_mountinfo(self._mountinfo.read_text(encoding="utf-8", errors="surrogateescape")):
            for number in self._devices_of(record):
                mounted.setdefault(number, set()).add(record.mountpoint)
        return mounted

    def _devices_of(self, record: MountRecord) -> set[int]:
        """Most filesystems carry the number of their device; btrfs makes one up and may have several devices."""
        if record.filesystem != "btrfs":
            return {record.device}
        identity = mounted_btrfs(Path(record.mountpoint))
        if identity is None:
            # Hidden by another mount, or by the root of this process.
            return set()
        members = _BTRFS / str(uuid.UUID(bytes=identity)) / "devices"
        if members.exists():
            return {number_of(member / "dev") for member in members.iterdir()}
        source = Path(record.source)
        return {source.stat().st_rdev} if source.is_block_device() else set()
