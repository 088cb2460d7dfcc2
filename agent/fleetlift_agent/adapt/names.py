# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device name in the source's configuration means on the copy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .volumes import OPAQUE, CopyDisk, DiskVolume

_TAGS = {
    "UUID": "uuid",
    "LABEL": "label",
    "PARTUUID": "partuuid",
}
_LINKS = {"by-uuid": "UUID", "by-label": "LABEL", "by-partuuid": "PARTUUID"}
_SCSI = re.compile(r"/dev/((?:sd|hd|vd|xvd)([a-z]+))(\d*)\Z")
_OTHER = re.compile(r"/dev/((?:nvme\d+n|mmcblk)(\d+)|cciss/c\d+d(\d+))(?:p(\d+))?\Z")
_HARDWARE_LINK = re.compile(r"/dev/disk/(?:by-id|by-path)/(.+?)(?:-part(\d+))?\Z")
# Shorter ones may be part of something else.
_TELLING_SERIAL = 8
# Links that come from the content and not from the hardware, so that they lead to the same on the target.
_CONTENT_LINKS = ("dm-", "lvm-", "md-")


@dataclass(frozen=True)
class Meaning:
    """The answer about a name: whether it may stay, the volume if it is known, and whether it is known to be absent."""

    stable: bool
    volume: DiskVolume | None = None
    absent: bool = False


class Names:
    """The names of the source's devices. ``inner`` says that all LVM volumes have been found as well."""

    def __init__(self, disks: Sequence[CopyDisk], inner: Sequence[DiskVolume] = ()) -> None:
        self._disks = tuple(disks)
        self.volumes = tuple(volume for disk in disks for volume in disk.volumes) + tuple(inner)
        hidden = {volume.content.kind for volume in self.volumes if volume.content.kind in OPAQUE}
        if inner:
            hidden.discard("LVM")
        self.opaque = bool(hidden)

    def meaning(self, name: str) -> Meaning:
        """What *name*, as in the first field of fstab, is on the copy."""
        name = name.replace('"', "").replace("'", "")
        tag, _equals, value = name.partition("=")
        if tag in _TAGS and value:
            return self._tagged(tag, value)
        if tag == "PARTLABEL":
            return Meaning(stable=True)
        if name.startswith("/dev/disk/"):
            return self._linked(name)
        found = _SCSI.match(name) or _OTHER.match(name)
        if found is None:
            return Meaning(stable=True)
        number = int(found.groups()[-1] or 0)
        disk = self._disk_called(f"/dev/{found.group(1)}")
        return self._numbered(disk, number)

    def stable_name(self, volume: DiskVolume) -> str:
        """A name that leads to *volume* on any hardware; empty when it has none."""
        same = [each for each in self.volumes if each.content.uuid == volume.content.uuid]
        if volume.content.uuid and volume.content.kind not in OPAQUE and len(same) == 1:
            return f"UUID={volume.content.uuid}"
        if volume.content.kind == "LUKS" and len(same) == 1:
            return f"UUID={volume.content.uuid}"
        return f"PARTUUID={volume.partuuid}" if volume.partuuid else ""

    def _tagged(self, tag: str, value: str) -> Meaning:
        for volume in self.volumes:
            own = {"UUID": volume.content.uuid, "LABEL": volume.content.label, "PARTUUID": volume.partuuid}[tag]
            if own and own.lower() == value.lower():
                return Meaning(stable=True, volume=volume)
        return Meaning(stable=True, absent=not self.opaque)

    def _linked(self, name: str) -> Meaning:
        kind, _slash, value = name[len("/dev/disk/") :].partition("/")
        if kind in _LINKS:
            return self._tagged(_LINKS[kind], value.replace("\\x20", " "))
        found = _HARDWARE_LINK.match(name)
        if found is None or found.group(1).startswith(_CONTENT_LINKS):
            return Meaning(stable=True)
        whole = name if found.group(2) is None else name[: name.rindex("-part")]
        disk = next((each for each in self._disks if whole in each.aliases or whole == each.device), None)
        if disk is None:
            # udev builds these links from the serial number, with the vendor and the model before it.
            serials = [each for each in self._disks if len(each.serial) >= _TELLING_SERIAL and each.serial in whole]
            disk = serials[0] if len(serials) == 1 else None
        return self._numbered(disk, int(found.group(2) or 0))

    def _disk_called(self, device: str) -> CopyDisk | None:
        for disk in self._disks:
            if device == disk.device or device in disk.aliases:
                return disk
        # An image says nothing about the names; the kernel gave them in the order of the disks.
        if not any(disk.device for disk in self._disks):
            place = _place(device)
            if place is not None and place < len(self._disks):
                return self._disks[place]
        return None

    def _numbered(self, disk: CopyDisk | None, number: int) -> Meaning:
        if disk is None:
            return Meaning(stable=False, absent=True)
        for volume in disk.volumes:
            if volume.number == number:
                return Meaning(stable=False, volume=volume)
        return Meaning(stable=False, absent=True)


def _place(device: str) -> int | None:
    """The place of a kernel's disk name in the order of the disks, from 0."""
    letters = re.match(r"/dev/(?:sd|hd|vd|xvd)([a-z]+)\Z", device)
    if letters:
        place = 0
        for letter in letters.group(1):
            place = place * 26 + ord(letter) - ord("a") + 1
        return place - 1
    number = re.match(r"/dev/(?:nvme(\d+)n1|mmcblk(\d+)|cciss/c0d(\d+))\Z", device)
    return next(int(each) for each in number.groups() if each is not None) if number else None
