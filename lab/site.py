# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all machines of one lab share, and what tells a source's machine from an instance's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.ledger import Ledger
from lab.machines.namespace import NamespaceMachine
from lab.machines.protocol import MachineDisk, Platform
from lab.network import Network

ONPREM_PLATFORM = Platform("Fleetlift Lab", "On-premises Server", "sd")
CLOUD_PLATFORM = Platform("Tencent Cloud", "CVM", "vd")


@dataclass(frozen=True)
class MachineSite:
    """Makes machines of one kind in one lab."""

    directory: Path
    base_root: Path
    network: Network
    ledger: Ledger
    on_power_off: Callable[[str], None]

    def source(self, name: str, disks: list[MachineDisk]) -> NamespaceMachine:
        """Return a source server, switched off."""
        return self._machine(name, disks, ONPREM_PLATFORM)

    def instance(self, name: str, disks: list[MachineDisk]) -> NamespaceMachine:
        """Return a cloud instance, switched off."""
        return self._machine(name, disks, CLOUD_PLATFORM)

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
