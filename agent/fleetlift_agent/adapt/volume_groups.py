# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy's LVM volume groups, opened with this system's lvm2, which sees the copy's disks and no other."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fleetlift_agent.errors import AgentError
from fleetlift_agent.usedblocks.volume import BufferedDevice, Volume

from . import mounts
from .volumes import Content, CopyDisk, DiskVolume, identify, measure

_BASES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")


class VolumeGroups:
    """The groups on the physical volumes whose device nodes these are."""

    def __init__(self, program: str, physical: Sequence[Path]) -> None:
        self._program = program
        accepted = ",".join(f'"a|^{path}$|"' for path in physical)
        scan = ",".join(f'"{each}"' for each in sorted({str(path.parent) for path in physical}))
        self._configuration = (
            f'devices {{ dir="/dev" scan=[{scan}] filter=[{accepted},"r|.*|"] global_filter=[{accepted},"r|.*|"] '
            'obtain_device_list_from_udev=0 use_devicesfile=0 write_cache_state=0 external_device_info_source="none" } '
            "global { use_lvmetad=0 use_lvmpolld=0 locking_type=1 } "
            "activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        )

    def activated(self, nodes: dict[DiskVolume, Path], directory: Path, stack: ExitStack) -> list[DiskVolume]:
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
        done = subprocess.run(
            [self._program, command, "--config", self._configuration, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={"PATH": ":".join(_BASES), "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
        )
        if done.returncode != 0:
            raise AgentError(
                "LVM_FAILED",
                f"lvm {command} ended with status {done.returncode}",
                "Read what it said in the evidence; the volume groups of the copy may be incomplete: copy all their "
                "disks",
                {"output": done.stderr[-2000:]},
                subject="lvm",
            )
        return done.stdout


def of(disks: Sequence[CopyDisk], nodes: Mapping[DiskVolume, Path]) -> VolumeGroups | None:
    """The groups on these disks; None when there are none, or this system has no lvm2 or no device mapper."""
    physical = [nodes[volume] for disk in disks for volume in disk.volumes if volume.content.kind == "LVM"]
    program = next((f"{base}/lvm" for base in _BASES if Path(f"{base}/lvm").exists()), None)
    mapper = "device-mapper" in Path("/proc/misc").read_text(encoding="ascii")
    return VolumeGroups(program, physical) if physical and program and mapper else None
