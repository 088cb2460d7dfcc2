# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is vouched for before it is durable."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
from fleetlift_agent import committer
from fleetlift_agent.committer import Committer
from fleetlift_agent.errors import AgentError
from fleetlift_agent.wire import ExtentKey
from loop_pair import wait_for


class RecordingDisk:
    """Notes the order of what happens to it; `broken` makes it refuse to sync."""

    def __init__(self, events: list[Any], broken: bool = False) -> None:
        self._events = events
        self._broken = broken
        self.manifest = self
        self.read_back = self

    def sync(self) -> None:
        if self._broken:
            raise AgentError("TARGET_WRITE_FAILED", "broken", "replace it", {"errno": errno.EIO})
        self._events.append("sync")

    def set(self, extent: int, digest: bytes) -> None:
        self._events.append(("manifest", extent, digest))

    def written(self, extent: int) -> None:
        self._events.append(("to read back", extent))


def test_sync_then_manifest_then_acknowledgement() -> None:
    events: list[Any] = []
    failures: list[AgentError] = []
    subject = Committer([RecordingDisk(events)], lambda keys: events.append(("ack", keys)), failures.append)  # type: ignore[list-item]
    subject.add(ExtentKey(0, 7), b"digest", 1)
    wait_for(lambda: len(events) == 4, "an acknowledgement without any further write")
    assert events == ["sync", ("manifest", 7, b"digest"), ("to read back", 7), ("ack", [ExtentKey(0, 7)])]
    subject.add(ExtentKey(0, 8), b"digest", 1)
    subject.close()
    assert events[4:] == ["sync", ("manifest", 8, b"digest"), ("to read back", 8), ("ack", [ExtentKey(0, 8)])]
    assert not failures


def test_last_batch_does_not_wait_for_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "BATCH_SECONDS", 3600.0)
    acknowledged: list[Any] = []
    last = Committer([RecordingDisk([])], acknowledged.extend, lambda error: None)  # type: ignore[list-item]
    for extent in range(3):
        last.add(ExtentKey(0, extent), b"digest", 1)
    wait_for(lambda: len(acknowledged) == 3, "everything is acknowledged although nothing follows")
    last.close()


def test_failed_sync_vouches_for_nothing_and_blocks_nobody() -> None:
    events: list[Any] = []
    failures: list[AgentError] = []
    failed = threading.Event()

    def fail(error: AgentError) -> None:
        failures.append(error)
        failed.set()

    subject = Committer([RecordingDisk(events, broken=True)], lambda keys: events.append(keys), fail)  # type: ignore[list-item]
    for extent in range(300):
        subject.add(ExtentKey(0, extent), b"digest", 1 << 20)
    assert failed.wait(10)
    subject.close()
    assert events == []
    assert failures[0].code == "TARGET_WRITE_FAILED"
