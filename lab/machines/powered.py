# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every machine of the lab has, whatever it is made of: a name, disks, a console, a cable and a power switch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.ledger import Ledger
from lab.machines.protocol import MachineDisk, Platform, State
from lab.network import Network


class PoweredMachine(ABC):
    """A machine, switched off at first; see Machine for what its calls mean."""

    def __init__(
        self,
        name: str,
        disks: Sequence[MachineDisk],
        *,
        platform: Platform,
        directory: Path,
        network: Network,
        ledger: Ledger,
        on_power_off: Callable[[str], None],
    ) -> None:
        self._name = name
        self._disks = list(disks)
        self._platform = platform
        self._directory = directory
        self._network = network
        self._ledger = ledger
        self._on_power_off = on_power_off
        self._state = State.OFF
        self._calls = threading.RLock()
        self._changed = threading.Condition()
        self._stopping = False
        self.console = directory / "console.log"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.console.touch(mode=0o600)

    @property
    def name(self) -> str:
        """The machine's name in the lab."""
        return self._name

    @property
    def state(self) -> State:
        """What the machine is doing now."""
        return self._state

    @property
    def disks(self) -> list[MachineDisk]:
        """The disks in order, the one that is booted first."""
        return list(self._disks)

    @abstractmethod
    def start(self) -> None:
        """Boot what is on the first disk."""

    @abstractmethod
    def stop(self, *, hard: bool) -> None:
        """Shut the guest down, or cut its power. A machine that is off stays off."""

    def reboot(self) -> None:
        """Shut the guest down and boot its first disk again."""
        with self._calls:
            self.stop(hard=False)
            self.start()

    def destroy(self) -> None:
        """Cut the power and give everything back but the disks."""
        with self._calls:
            self.stop(hard=True)
            self._network.disconnect(self._name)
