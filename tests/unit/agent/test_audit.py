# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit's verdict: a difference is explained by a report of just these bytes, which may come a little late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent import audit
from fleetlift_agent.audit import Audit
from fleetlift_agent.dirty import GRANULE, DirtyMap
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.passes import Ranges
from fleetlift_agent.tracing import NullTracker
from fleetlift_agent.wire import ExtentKey

EXTENTS = 2000
HERE = ExtentKey(0, 7)


class Reports(NullTracker):
    """A tracker whose reports come with one drain after the other."""

    def __init__(self, dirty: DirtyMap) -> None:
        super().__init__([], "")
        self.dirty = dirty
        self.coming: Iterator[list[tuple[int, int]]] = iter([])
        self.drains = 0

    def drain(self) -> None:
        self.drains += 1
        for offset, length in next(self.coming, []):
            assert self.dirty.mark(0, offset, length)

    def changed(self, key: ExtentKey, ranges: Ranges) -> bool:
        return self.dirty.changed(key.disk, key.extent, ranges)


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    dirty = DirtyMap(tmp_path / "dirty", [EXTENTS * EXTENT], limit=1 << 20)
    assert dirty.begin_rescan(0)
    dirty.settle()
    return Reports(dirty)


def test_no_difference_needs_no_report(reports: Reports) -> None:
    assert Audit(reports, patience=30).missed() is None


def test_report_may_come_late(reports: Reports) -> None:
    reports.coming = iter([[], [], [(HERE.extent * EXTENT, 2 * GRANULE)]])
    subject = Audit(reports, patience=30)
    subject.differs(HERE, ((0, 2 * GRANULE),))
    assert subject.missed() is None
    assert reports.drains == 3


def test_what_nobody_reports_is_missed(reports: Reports) -> None:
    subject = Audit(reports, patience=0.3)
    subject.differs(ExtentKey(0, 9), ((0, GRANULE),))
    subject.differs(HERE, ((0, GRANULE),))
    assert subject.missed() == HERE


@pytest.mark.parametrize("offset", [0, 2 * GRANULE])
def test_report_of_another_block_of_the_extent_explains_nothing(reports: Reports, offset: int) -> None:
    assert reports.dirty.mark(0, HERE.extent * EXTENT + offset, GRANULE)
    subject = Audit(reports, patience=0)
    subject.differs(HERE, ((0, 2 * GRANULE),))
    assert subject.missed() == HERE


def test_disk_that_is_to_be_read_again_explains_everything(reports: Reports) -> None:
    subject = Audit(reports, patience=30)
    subject.differs(HERE, ((0, GRANULE),))
    reports.dirty.rescan(0)
    assert subject.missed() is None


def test_differences_are_not_gathered_without_bound(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_MOST", 10)
    reports.coming = iter([[(0, 10 * EXTENT)]])
    subject = Audit(reports, patience=0.3)
    for extent in range(9):
        subject.differs(ExtentKey(0, extent), ((0, GRANULE),))
    assert not reports.drains
    subject.differs(ExtentKey(0, 9), ((0, GRANULE),))
    assert reports.drains == 1
    # Nobody reports these.
    workers = [
        threading.Thread(target=subject.differs, args=(ExtentKey(0, extent), ((0, GRANULE),)))
        for extent in range(100, 200)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    drains = reports.drains
    key = subject.missed()
    assert key is not None and key.extent >= 100
    # The verdict stands: nothing more is asked for.
    assert reports.drains - drains <= 1
