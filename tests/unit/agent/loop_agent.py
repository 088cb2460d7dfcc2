# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's command line with one difference: targets are found by a table, since loop devices have no serial.

The environment variable FLEETLIFT_TEST_TARGETS holds {serial: device}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from fleetlift_agent import daemon, devices, hashing, tracing
from fleetlift_agent.cli import main
from fleetlift_agent.errors import AgentError


def find_target(serial: str, minimum_size: int) -> devices.TargetDisk:
    path = json.loads(os.environ["FLEETLIFT_TEST_TARGETS"])[serial]
    descriptor = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    size = devices.device_size(descriptor)
    if size < minimum_size:
        raise AgentError("TARGET_DISK_TOO_SMALL", "too small", "enlarge it")
    return devices.TargetDisk(
        descriptor, Path(path), Path(path).name, size, devices.logical_block_size(descriptor), serial
    )


class BlindDetector:
    """A change detector that never sees a change."""

    name = "blind"

    def fingerprint(self, _data: memoryview) -> bytes:
        return b"x" * hashing.DETECTOR


if __name__ == "__main__":
    if "FLEETLIFT_TEST_BLIND" in os.environ:
        hashing.best_detector = BlindDetector
    if "FLEETLIFT_TEST_DEAF" in os.environ:
        # A kernel that does not report writes to these sectors.
        first, last = (int(sector) for sector in os.environ["FLEETLIFT_TEST_DEAF"].split("-"))
        note = tracing.ChangeTracker._note
        tracing.ChangeTracker._note = lambda self, page: note(  # type: ignore[method-assign]
            self, replace(page, changes=[change for change in page.changes if not first <= change[1] <= last])
        )
    if "FLEETLIFT_TEST_RING_KIB" in os.environ:
        tracing.affordable = lambda *_arguments: int(os.environ["FLEETLIFT_TEST_RING_KIB"])
    if "FLEETLIFT_TEST_STALLED" in os.environ:
        tracing._STALLED = float(os.environ["FLEETLIFT_TEST_STALLED"])
    start = daemon.start
    daemon.start = lambda directory: start(directory, daemon.Openers(target=find_target))  # type: ignore[misc,assignment]
    sys.exit(main())
