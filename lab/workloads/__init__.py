# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the demo's servers do: each workload is seeded on the mounted disks of a source before its first boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lab.workloads import database, files, web


def idle(root: Path) -> None:
    """A server that does nothing."""


SEEDS: dict[str, Callable[[Path], None]] = {
    "none": idle,
    "web": web.seed,
    "database": database.seed,
    "files": files.seed,
}


def seed(workload: str, root: Path) -> None:
    """Put ``workload`` on the source whose root is mounted on ``root``."""
    SEEDS[workload](root)
