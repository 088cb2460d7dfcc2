# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cloud asks of the machines behind it.

The cloud decides (states, permissions, order); a hypervisor does. Every call blocks until the work is
done and is made from a worker thread of the cloud; calls for one instance never overlap. Failures are
raised as HypervisorError: the instance's operation then ends as FAILED with that text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


class HypervisorError(Exception):
    """The machine could not do what it was asked; the text is shown as LatestOperationErrorMsg."""


@dataclass(frozen=True)
class DiskSpec:
    """One cloud disk. serial is what the guest reads (/dev/disk/by-id/virtio-<serial>)."""

    disk_id: str
    serial: str
    size_gb: int
    usage: Literal["SYSTEM_DISK", "DATA_DISK"]


@dataclass(frozen=True)
class InstanceSpec:
    """A machine to build: its disks exist already (create_disk was called), system disk first."""

    instance_id: str
    name: str
    host_name: str
    zone: str
    private_addresses: tuple[str, ...]
    public_addresses: tuple[str, ...]
    cpu: int
    memory_gb: int
    image_id: str
    disks: tuple[DiskSpec, ...]
    password: str | None = field(default=None, repr=False)


class ImageRejected(Exception):
    """An image file that cannot be imported; code is one of those that the vendor documents for it (213/4945)."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class ImageOrder:
    """An image to import: the URL of its system disk and those of its data disks, and what is demanded of it."""

    image_id: str
    urls: tuple[str, ...] = field(repr=False)
    boot_mode: str = "Legacy BIOS"
    force: bool = False
    gpt_accepted: bool = False


@dataclass(frozen=True)
class PacketRule:
    """One rule for connections to or from an instance. Rules are tried in order, the first match wins, no match drops.

    protocol: "all", "tcp", "udp", "icmp", "icmpv6" or "gre".
    ports: inclusive ranges, e.g. ((80, 80), (443, 443)); empty for every port. Only tcp and udp have ports.
    peer: where they come from or go to, an IPv4 or IPv6 network, e.g. "0.0.0.0/0".
    """

    protocol: str
    ports: tuple[tuple[int, int], ...]
    peer: str
    action: Literal["ACCEPT", "DROP"]


class Hypervisor(Protocol):
    """The machines of one lab, by instance id and disk id."""

    def create_disk(self, disk_id: str, size_gb: int) -> None:
        """Make an empty disk of size_gb GiB. A disk of that id and size that exists already is left as it is."""

    def delete_disk(self, disk_id: str) -> None:
        """Forget a detached disk and its data."""

    def snapshot_disk(self, disk_id: str, snapshot_id: str, progress: Callable[[int], None]) -> None:
        """Keep what a disk holds at this moment, also of a running machine. progress is told whole per cents."""

    def apply_snapshot(self, snapshot_id: str, disk_id: str) -> None:
        """Have a disk that no running machine uses hold what it held when the snapshot was made."""

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot; one that does not exist is none to forget."""

    def reinstall(self, spec: InstanceSpec) -> None:
        """Put the image of spec onto the system disk of a stopped machine, at the size that spec has."""

    def create(self, spec: InstanceSpec) -> None:
        """Build a machine with its disks attached and its network in place, powered off."""

    def start(self, instance_id: str) -> None:
        """Power a stopped machine on: it boots what is on its own system disk."""

    def stop(self, instance_id: str, hard: bool) -> None:
        """Power a machine off, in rescue or not. hard cuts the power; otherwise the guest shuts down."""

    def reboot(self, instance_id: str) -> None:
        """Restart a machine that runs from its own disk."""

    def rescue(self, instance_id: str, username: str, password: str) -> None:
        """Boot a stopped machine into the rescue system, open to username with password over SSH."""

    def destroy(self, instance_id: str) -> None:
        """Power off and remove the machine; its disks stay until delete_disk."""

    def attach_disk(self, instance_id: str, disk_id: str, serial: str, size_gb: int) -> None:
        """Add an existing data disk to a machine, running or stopped."""

    def detach_disk(self, instance_id: str, disk_id: str) -> None:
        """Take a data disk out of a machine, running or stopped."""

    def import_image(self, order: ImageOrder) -> tuple[int, ...]:
        """Fetch and convert an image's disks; returns their sizes in bytes. Raises ImageRejected."""

    def fill_disk(self, disk_id: str, size_gb: int, image_id: str, number: int) -> None:
        """Put a disk of an imported image, numbered from 0, onto a cloud disk that no machine has yet."""

    def delete_image(self, image_id: str) -> None:
        """Forget an imported image's disks."""

    def set_bandwidth(self, instance_id: str, mbps_out: int) -> None:
        """Limit what the machine sends, in Mbit/s; 0 for one without a public network."""

    def set_policies(self, instance_id: str, ingress: Sequence[PacketRule], egress: Sequence[PacketRule]) -> None:
        """Replace the packet rules in front of the machine. What answers a connection that was let through passes."""

    def is_running(self, instance_id: str) -> bool:
        """Whether the machine is powered on, in rescue or not."""
