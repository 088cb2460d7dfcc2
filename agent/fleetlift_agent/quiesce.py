# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quiesce side as the cutover needs it: services, filesystems, network, power. One object, to be passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fleetlift_agent import freeze, power, services
from fleetlift_agent.fence import Fence
from fleetlift_agent.unplanned import UnplannedDisks


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


@dataclass(frozen=True)
class GivenBack:
    """What it took to put a source back to work; ``started`` are the services that did not run."""

    unfenced: bool
    started: tuple[str, ...]


class Quiesce:
    """The real thing, for the disks `devices` of this host."""

    def __init__(self, devices: Sequence[Path], directory: Path, left_behind: Sequence[str] = ()) -> None:
        self._devices = devices
        self.fence = Fence(directory)
        self.unplanned = UnplannedDisks(devices, left_behind)

    def services(self) -> services.ServiceManager:
        return services.detect()

    def mounts(self) -> list[Path]:
        return freeze.mounts_of_disks(self._devices)

    def freezer(self, mounts: Sequence[Path], timeout: float) -> Freezer:
        """Opened, with its watchdog running, and not frozen yet."""
        return freeze.FilesystemFreezer(mounts, timeout).__enter__()

    def give_back(self, names: Sequence[str], timeout: float) -> GivenBack:
        """No fence stands, and these services run as well as those that were stopped for it. Raises AgentError."""
        stopped = self.fence.open()
        manager = self.services()
        wanted = list(dict.fromkeys([*names, *(stopped or ())]))
        starting = [name for name in wanted if not manager.is_running(name)]
        manager.start(starting, timeout)
        return GivenBack(stopped is not None, tuple(starting))

    def power_off(self) -> None:
        power.power_off()
