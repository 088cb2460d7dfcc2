# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab asks of a machine, whatever it is made of."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class MachineError(Exception):
    """The machine could not do what it was asked; the text says why."""


class State(enum.Enum):
    """Whether a machine is on, and what it runs."""

    OFF = "off"
    RUNNING = "running"
    RESCUE = "rescue"


@dataclass(frozen=True)
class MachineDisk:
    """A disk of a machine: the file that holds its bytes, the serial that the guest reads, and its size in bytes.

    ``capacity`` is given for a file that does not hold the disk byte for byte.
    """

    file: Path
    serial: str
    capacity: int = 0

    @property
    def size(self) -> int:
        """What the guest sees, in bytes."""
        return self.capacity or self.file.stat().st_size


@dataclass(frozen=True)
class Platform:
    """What the machine's firmware says it is, and how its disks are called: ``sd`` or ``vd``."""

    vendor: str
    product: str
    disk_prefix: str


class Machine(Protocol):
    """One machine. Every call blocks until it is done and raises MachineError when it cannot be."""

    @property
    def name(self) -> str:
        """The machine's name in the lab."""

    @property
    def state(self) -> State:
        """What the machine is doing now."""

    @property
    def disks(self) -> Sequence[MachineDisk]:
        """The disks in order, the one that is booted first."""

    @property
    def root(self) -> Path | None:
        """Where the machine's root directory can be seen from the host; None while it is off."""

    def start(self) -> None:
        """Boot what is on the first disk."""

    def rescue(self, username: str, password: str) -> None:
        """Boot the RAM-only rescue system with every disk attached and none mounted."""

    def stop(self, *, hard: bool) -> None:
        """Shut the guest down, or cut its power."""

    def reboot(self) -> None:
        """Shut the guest down and boot its first disk again."""

    def attach(self, disk: MachineDisk) -> None:
        """Add a disk."""

    def detach(self, serial: str) -> None:
        """Take a disk out."""

    def still(self) -> AbstractContextManager[None]:
        """Nothing changes on the disks for the length of the block, as a storage sees to when it takes a snapshot."""

    def destroy(self) -> None:
        """Cut the power and give everything back but the disks."""
