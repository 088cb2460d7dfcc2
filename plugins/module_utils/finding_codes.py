# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of everything that the preflight can find: what each code is called, and whether it can be accepted.

Causes and next steps stand where the findings are made; docs/errors.md puts both together. Tests hold that the table
is complete, that nothing in it is unused, and that a test produces each entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_WRONG_DISK = "a disk would be written that was not meant, or not at all"
_INCOMPLETE = "the copy would lack data, and nobody would notice"
_OVERWRITES = "data would be overwritten that exists nowhere else"
_NOTHING_DONE = "without it nothing can be copied"


@dataclass(frozen=True)
class Code:
    """``title`` heads the finding in a report. ``guards`` says why it cannot be accepted; None where it can be.

    ``documented`` is the cause of failure that the vendor's FAQ or guides name and that this code catches.
    """

    title: str
    guards: str | None = None
    documented: str | None = None


_PORTS = "ports 80 and 443 of the target's security groups are not open"
_LEFT = "an earlier migration was not ended, and the target stays in migration mode"
_UNUSABLE = "the target is expired, isolated, in arrears or not in a usable state"
_SMALL = "the target's disk is smaller than the source's"
_OVERFLOW = "the source has data disks that no disk of the target is given for, and everything lands on the system disk"
_SHARED = "several sources at once: each needs a target of its own"
_SYSTEM = "the target was made from the image of another system"
_PRIVATE = "private network: no route between source and target"

CODES: Mapping[str, Code] = {
    # The source
    "SOURCE_UNREACHABLE": Code("The source cannot be reached", _NOTHING_DONE),
    "SOURCE_NOT_READ": Code("The source could not be looked at", _NOTHING_DONE),
    "NOT_ASSESSED": Code("The preflight has no result", _NOTHING_DONE),
    "NOT_ROOT": Code("Not root on the source", _NOTHING_DONE),
    "PYTHON_TOO_OLD": Code("Python on the source is too old for the agent"),
    "MEMORY_LOW": Code("Little memory for the agent"),
    "CLOCK_SKEW": Code("The source's clock is wrong", None, "the source's time is wrong"),
    "SERVICE_UNKNOWN": Code("A service to stop does not exist"),
    "SYSTEM_DISK_NOT_FOUND": Code("The root filesystem is on no disk"),
    "DISK_UNREADABLE": Code("A disk cannot be read", _INCOMPLETE),
    "LVM_USED": Code("Logical volumes"),
    "RAID_USED": Code("Linux RAID"),
    "ENCRYPTION_USED": Code("Encrypted volumes"),
    "MULTIPATH_USED": Code("Multipath disks"),
    "ZFS_USED": Code("ZFS"),
    "READ_IN_FULL": Code("Volumes that are read in full"),
    "SWAP_NOT_COPIED": Code("Swap space is not copied"),
    "REMOTE_DISK": Code("A disk on a storage system"),
    "NETWORK_MOUNT": Code("A mount from another server does not travel"),
    "KERNEL_WITHOUT_VIRTIO": Code("The kernel has no virtio", None, "virtio is missing in the kernel"),
    "KERNEL_WITHOUT_VIRTIO_NET": Code("The kernel has no virtio network", None, "virtio is missing in the kernel"),
    "INITRAMFS_WITHOUT_VIRTIO": Code("The initramfs has no virtio", None, "virtio is missing in the initramfs"),
    "CHANGES_NOT_TRACKED": Code("Changes cannot be tracked: a longer downtime"),
    "SELINUX_ACTIVE": Code("SELinux is on", None, "SELinux is on"),
    "BOOT_SPACE_LOW": Code("Little room for the kernels' files"),
    "DISTRIBUTION_UNLISTED": Code("Not on the vendor's list", None, "the distribution is not on the list"),
    "DATABASE_NOT_STOPPED": Code("A database that the cutover does not stop"),
    "CONTAINERS_RUN": Code("Containers"),
    "KUBERNETES_NODE": Code("A Kubernetes node"),
    "GUEST_TOOLS": Code("Tools of the old platform"),
    # The target
    "TARGET_NOT_FOUND": Code("The target does not exist", _NOTHING_DONE),
    "TARGET_SHARED": Code("Several sources on one target", _OVERWRITES, _SHARED),
    "TARGET_IS_THE_SOURCE": Code("The target already is this server", _OVERWRITES),
    "TARGET_EXPIRED": Code("The target has expired", _NOTHING_DONE, _UNUSABLE),
    "TARGET_ISOLATED": Code("The target is isolated or in arrears", _NOTHING_DONE, _UNUSABLE),
    "TARGET_IN_LIVE_MIGRATION": Code("The target is in the vendor's own migration", _OVERWRITES, _LEFT),
    "TARGET_IN_RESCUE_MODE": Code("The target was left in rescue mode", None, _LEFT),
    "TARGET_STATE": Code("The target is in a state without return", _NOTHING_DONE, _UNUSABLE),
    "TARGET_STATE_UNKNOWN": Code("The target is in an unknown state", _OVERWRITES, _UNUSABLE),
    "TARGET_BUSY": Code("Another operation runs on the target", _OVERWRITES, _UNUSABLE),
    "TARGET_DISK_BUSY": Code("Another operation runs on a disk of the target", _OVERWRITES, _UNUSABLE),
    "TARGET_ARM": Code("The target is an ARM machine", _NOTHING_DONE),
    "TARGET_STOPPED_NO_CHARGE": Code("The target was stopped without charging", _NOTHING_DONE, _UNUSABLE),
    "TARGET_NO_ADDRESS": Code("The target has no address", _NOTHING_DONE),
    "TARGET_SYSTEM_DIFFERS": Code("The cloud believes another system is on the target", None, _SYSTEM),
    "ARCHITECTURE_MISMATCH": Code("Another architecture"),
    "FIRMWARE_UEFI": Code("UEFI, and what the target starts with is not known"),
    "SECTOR_SIZE_MISMATCH": Code("Another sector size", _INCOMPLETE),
    # The plan
    "DISK_UNKNOWN": Code("A mapped disk that the source does not have", _WRONG_DISK),
    "DISK_AMBIGUOUS": Code("A mapped name that means several disks", _WRONG_DISK),
    "DISK_MAPPED_TWICE": Code("A disk that is mapped twice", _OVERWRITES),
    "DISK_UNMAPPED": Code("A disk with data that has no place", None, _OVERFLOW),
    "DISK_UNMAPPED_UNUSED": Code("A disk without a mount that has no place"),
    "TARGET_DISK_UNKNOWN": Code("A mapped disk that the target does not have", _WRONG_DISK),
    "TARGET_DISK_SMALLER": Code("The target's disk is too small", _INCOMPLETE, _SMALL),
    "SYSTEM_DISK_NOT_ON_SYSTEM_DISK": Code("System disk and data disk are mixed up", _WRONG_DISK),
    "ACCEPT_UNKNOWN": Code("An accepted code that does not exist", "it is about fleetlift_accept itself"),
    "ACCEPT_REFUSED": Code("An accepted code that guards data", "it is about fleetlift_accept itself"),
    "ACCEPT_WITHOUT_REASON": Code("An accepted code without a reason", "it is about fleetlift_accept itself"),
    # The path
    "PORT_CLOSED": Code("The security groups do not let the source in", None, _PORTS),
    "PORT_UNKNOWN": Code("Whether the security groups let the source in is unknown", None, _PORTS),
    "VENDOR_PORT_CLOSED": Code("A port that only the vendor's tool needs is closed", None, _PORTS),
    "PORT_FILTERED": Code("Something on the way drops the packets", None, _PORTS),
    "PORT_NOT_PROBED": Code("The port could not be tried", None, _PORTS),
    "PROXY_UNUSABLE": Code("The proxy opens no tunnel to the target", _NOTHING_DONE, _PORTS),
    "NO_ROUTE_TO_TARGET": Code("No route to the target", None, _PRIVATE),
    "WRITES_EXCEED_PATH": Code("More is written than the path carries"),
    "PUBLIC_IP_STAYS": Code("The public address does not move", None, "the public IP does not move"),
}
