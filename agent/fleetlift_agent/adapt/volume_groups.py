# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy's LVM volume groups, opened with this system's lvm2, which sees the copy's disks and no other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fleetlift_agent import activated
from fleetlift_agent.usedblocks.volume import BufferedDevice, Volume

from . import mounts
from .volumes import Content, CopyDisk, DiskVolume, identify, measure


class VolumeGroups:
    """The groups on the physical volumes whose device nodes these are."""

    def __init__(self, program: Path, physical: Sequence[Path]) -> None:
        self._program = program
        self._configuration = activated.only(physical)

    def activate(self, nodes: dict[DiskVolume, Path], directory: Path, stack: ExitStack) -> list[DiskVolume]:
        """Their logical volumes, active until *stack* ends, with a node for each added to *nodes*."""
        groups = self._run("vgs", "--noheadings", "-o", "vg_name").split()
        if not groups:
            return []
        stack.callback(lambda: self._run("vgchange", "-an", *groups))
        self._run("vgchange", "-ay", *groups)
        fields = "vg_name,lv_name,lv_kernel_major,lv_kernel_minor"
        found = []
        for line in self._run("lvs", "--noheadings", "--separator", "|", "-o", fields, *groups).splitlines():
            group, name, major, minor = (field.strip() for field in line.split("|"))
            if int(major) < 0:
                # A pool's hidden parts and the like are not active themselves.
                continue
            node = mounts.node_for(os.makedev(int(major), int(minor)), f"mapper/{group}-{name}", directory)
            descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size, _sector = measure(descriptor)
                content = identify(Volume(BufferedDevice(descriptor), 0, size)) if size else Content()
            finally:
                os.close(descriptor)
            volume = DiskVolume(f"lvm {group}/{name}", 0, 0, size, "", "", content)
            nodes[volume] = node
            found.append(volume)
        return found

    def grow(self, physical: Path, logical: str) -> tuple[str, int]:
        """Have the physical volume *physical* use its device, and give what its group gains to a volume of it.

        *logical* is group/volume; a volume of another group stays as it is. Returns the group and its gain in bytes.
        """
        group, before = self._extents(physical)
        self._run("pvresize", str(physical))
        gained = self._extents(physical)[1] - before
        size = int(self._run("vgs", "--noheadings", "--nosuffix", "--units", "b", "-o", "vg_extent_size", group))
        if gained > 0 and logical.startswith(f"{group}/"):
            self._run("lvextend", "-l", f"+{gained}", logical, str(physical))
        return group, gained * size

    def _extents(self, physical: Path) -> tuple[str, int]:
        """The group of a physical volume and how many extents it has in it."""
        line = self._run("pvs", "--noheadings", "--separator", "|", "-o", "vg_name,pv_pe_count", str(physical))
        group, count = (field.strip() for field in line.split("|"))
        return group, int(count)

    def _run(self, command: str, *arguments: str) -> str:
        return activated.lvm(self._program, self._configuration, command, *arguments)


def of(disks: Sequence[CopyDisk], nodes: Mapping[DiskVolume, Path]) -> VolumeGroups | None:
    """The groups on these disks; None when there are none, or this system has no lvm2 or no device mapper."""
    physical = [nodes[volume] for disk in disks for volume in disk.volumes if volume.content.kind == "LVM"]
    program = next((path for path in activated.PROGRAMS if path.exists()), None)
    mapper = "device-mapper" in Path("/proc/misc").read_text(encoding="ascii")
    return VolumeGroups(program, physical) if physical and program and mapper else None
