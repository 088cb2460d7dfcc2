# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After its partition was grown: the physical volume, and the filesystem with the programs that belong to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from fleetlift_agent.errors import AgentError

from . import chroot, mounts
from .copy import WRITING, Copy
from .finding import Finding
from .volumes import CopyDisk, DiskVolume

_PROGRAMS = {
    "ext4": ("resize2fs", "{node}"),
    "xfs": ("xfs_growfs", "{mount}"),
    "btrfs": ("btrfs", "filesystem", "resize", "max", "{mount}"),
}
GROWABLE = (*_PROGRAMS, "LVM")


def last_volume(disk: CopyDisk) -> DiskVolume:
    """The one that can be enlarged when its disk is."""
    return max(disk.volumes, key=lambda volume: volume.start)


def not_growable(disk: CopyDisk) -> Finding | None:
    """What stands in the way of a disk's last partition; None when it is a filesystem or a physical volume."""
    last = last_volume(disk)
    if last.content.kind in GROWABLE:
        return None
    return Finding(
        "GROW_NOT_POSSIBLE",
        "warning",
        last.name,
        f"The last partition of the disk holds {last.content.kind or 'nothing that is known here'}, and only a "
        "filesystem (ext4, xfs, btrfs) or an LVM physical volume can be enlarged",
        "Use the room behind it on the target for a new partition, or leave growing out",
        {"partition": last.number},
    )


def grow(copy: Copy, work: Path) -> tuple[list[str], list[Finding]]:
    """Grow what is on the last volume of each disk: what was done, for people, and findings.

    A physical volume's gain goes to the root filesystem where that is in its group.
    """
    done: list[str] = []
    findings: list[Finding] = []
    for disk in copy.disks:
        last = last_volume(disk)
        volume: DiskVolume | None = last
        if last.content.kind == "LVM":
            volume = _grow_group(copy, last, done, findings)
        if volume is not None and volume.content.kind in _PROGRAMS:
            findings += _grow_filesystem(copy, volume, work, done)
    return done, findings


def _grow_group(copy: Copy, last: DiskVolume, done: list[str], findings: list[Finding]) -> DiskVolume | None:
    """Grow a physical volume; the root's volume when it has been enlarged by that."""
    if copy.groups is None:
        findings.append(_failed(last, "lvm2", "this system cannot open volume groups"))
        return None
    root = copy.root.disk[len("lvm ") :] if copy.root.disk.startswith("lvm ") else ""
    try:
        group, gained = copy.groups.grow(copy.nodes[last], root)
    except AgentError as error:
        findings.append(_failed(last, "lvm2", str(error.record().get("evidence"))))
        return None
    if gained > 0:
        done.append(f"the volume group {group} has {gained} bytes more")
    # Also when an earlier run was cut off after this: the filesystem may not have followed yet.
    return copy.root if root.startswith(f"{group}/") else None


def _grow_filesystem(copy: Copy, volume: DiskVolume, work: Path, done: list[str]) -> list[Finding]:
    program, *words = _PROGRAMS[volume.content.kind]
    here = shutil.which(program, path=chroot.PATH)
    if here is None:
        return [_failed(volume, program, "this system does not have it")]
    node, kind = copy.nodes[volume], volume.content.kind
    mounted = copy.tree.root if volume == copy.root else work / "grow"
    try:
        if volume == copy.root:
            before, after, said = _enlarge(here, words, node, mounted)
        else:
            with mounts.mounted(str(node), mounted, kind, 0, WRITING[kind]):
                before, after, said = _enlarge(here, words, node, mounted)
    except OSError as error:
        return [_failed(volume, program, str(error))]
    if said:
        return [_failed(volume, program, said)]
    if after != before:
        what = "root filesystem" if volume == copy.root else f"filesystem on {volume.name}"
        done.append(f"the {what} has {after} bytes instead of {before}")
    return []


def _enlarge(program: str, words: list[str], node: Path, mounted: Path) -> tuple[int, int, str]:
    """Sizes before and after in bytes, and what the program said if it failed."""
    before = _total(mounted)
    done = subprocess.run(
        [program, *(each.format(node=node, mount=mounted) for each in words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env=chroot.ENVIRONMENT,
    )
    said = (done.stdout + done.stderr)[-2000:] if done.returncode != 0 else ""
    return before, _total(mounted), said


def _failed(volume: DiskVolume, program: str, why: str) -> Finding:
    return Finding(
        "GROW_FAILED",
        "warning",
        volume.name,
        f"What is on {volume.name} was not grown with {program}, though its partition was",
        f"Grow it on the target when it has started, with {program}",
        {"output": why},
    )


def _total(mounted: Path) -> int:
    status = os.statvfs(mounted)
    return status.f_blocks * status.f_frsize
