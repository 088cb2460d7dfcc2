# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all machines of one lab share, and what tells a source's machine from an instance's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.description import Virtual
from lab.errors import LabError
from lab.guestimage import GuestImage
from lab.ledger import Ledger
from lab.machines.namespace import NamespaceMachine
from lab.machines.protocol import MachineDisk, Platform
from lab.machines.qemu import Hardware, QemuMachine
from lab.machines.uml import UmlMachine
from lab.machines.virtual import VirtualMachine
from lab.network import Network
from lab.umlkernel import UmlKernel

ONPREM_PLATFORM = Platform("Fleetlift Lab", "On-premises Server", "sd")
CLOUD_PLATFORM = Platform("Tencent Cloud", "CVM", "vd")


@dataclass(frozen=True)
class MachineSite:
    """Makes the machines of one lab. ``image`` is what virtual machines are made of, None when there are none.

    ``uml`` is the kernel of those that are User-mode Linux.
    """

    directory: Path
    base_root: Path
    network: Network
    ledger: Ledger
    on_power_off: Callable[[str], None]
    image: GuestImage | None = None
    uml: UmlKernel | None = None

    def source(self, name: str, disks: list[MachineDisk]) -> NamespaceMachine:
        """Return a source server, switched off."""
        return self._machine(name, disks, ONPREM_PLATFORM)

    def instance(self, name: str, disks: list[MachineDisk]) -> NamespaceMachine:
        """Return a cloud instance, switched off."""
        return self._machine(name, disks, CLOUD_PLATFORM)

    def virtual_source(self, name: str, disks: list[MachineDisk], virtual: Virtual, snapshot: str) -> VirtualMachine:
        """Return a source server that is a virtual machine, switched off."""
        if virtual.kind == "uml":
            return self._uml(name, disks, ONPREM_PLATFORM, leases=False)
        hardware = Hardware(virtual.firmware, virtual.bus, virtual.nic)
        return self._virtual(name, disks, hardware, ONPREM_PLATFORM, snapshot=snapshot, leases=False)

    def virtual_instance(self, name: str, disks: list[MachineDisk], firmware: str) -> VirtualMachine:
        """Return a cloud instance that is a virtual machine, switched off."""
        if firmware == "uml":
            return self._uml(name, disks, CLOUD_PLATFORM, leases=True)
        hardware = Hardware(firmware, "virtio", "virtio")
        return self._virtual(name, disks, hardware, CLOUD_PLATFORM, snapshot="", leases=True)

    def _virtual(
        self,
        name: str,
        disks: list[MachineDisk],
        hardware: Hardware,
        platform: Platform,
        *,
        snapshot: str,
        leases: bool,
    ) -> QemuMachine:
        return QemuMachine(name, disks, hardware, snapshot=snapshot, **self._shared(name, platform, leases=leases))

    def _uml(self, name: str, disks: list[MachineDisk], platform: Platform, *, leases: bool) -> UmlMachine:
        if self.uml is None:
            raise LabError(f"the kernel of {name} was not prepared")
        return UmlMachine(name, disks, kernel=self.uml, **self._shared(name, platform, leases=leases))

    def _shared(self, name: str, platform: Platform, *, leases: bool) -> dict[str, Any]:
        """What every virtual machine is told."""
        if self.image is None:
            raise LabError(f"the image that {name} is made of was not built")
        return {
            "platform": platform,
            "directory": self.directory / name,
            "image": self.image,
            "network": self.network,
            "ledger": self.ledger,
            "on_power_off": self.on_power_off,
            "leases": leases,
        }

    def _machine(self, name: str, disks: list[MachineDisk], platform: Platform) -> NamespaceMachine:
        return NamespaceMachine(
            name,
            disks,
            platform=platform,
            directory=self.directory / name,
            base_root=self.base_root,
            network=self.network,
            ledger=self.ledger,
            on_power_off=self.on_power_off,
        )
