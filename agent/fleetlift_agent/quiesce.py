# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quiesce side as the cutover needs it: services, filesystems, power. One object, so that it can be passed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fleetlift_agent import freeze, power, services


class Freezer(Protocol):
    """Filesystems that can be held still; entering opens them and starts the watchdog, leaving thaws."""

    @property
    def thawed_by(self) -> str | None: ...

    def is_frozen(self) -> bool: ...

    def write_out(self) -> None: ...

    def freeze(self) -> None: ...

    def extend(self, timeout: float) -> None: ...

    def thaw(self) -> None: ...

    def close(self) -> None: ...


class Quiesce:
    """The real thing, for the disks `devices` of this host."""

    def __init__(self, devices: Sequence[Path]) -> None:
        self._devices = devices

    def services(self) -> services.ServiceManager:
        return services.detect()

    def mounts(self) -> list[Path]:
        return freeze.mounts_of_disks(self._devices)

    def freezer(self, mounts: Sequence[Path], timeout: float) -> Freezer:
        """Opened, with its watchdog running, and not frozen yet."""
        return freeze.FilesystemFreezer(mounts, timeout).__enter__()

    def power_off(self) -> None:
        power.power_off()
