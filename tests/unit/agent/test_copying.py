# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy as a whole: what is said of its passes, and when it is in sync and believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable

import pytest
from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.copying import Copy
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.mask import NullMask
from fleetlift_agent.passes import Counters, DirtySource, NothingNew, PassWork, Ranges
from fleetlift_agent.sender import Cancelled
from fleetlift_agent.tracing import TrackedDisk, TrackerState
from fleetlift_agent.wire import ExtentKey

DISK = TrackedDisk("d0", Path("/dev/null"), (1, 3), EXTENT)


class SlowState:
    """A state whose ticker is slow: it says what it knew a while ago."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "totals": {field.name: 0 for field in fields(Counters)},
            "passes": [],
            "disks": [],
        }
        self.ticking = threading.Event()
        self.go_on = threading.Event()

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def update(self, **values: Any) -> None:
        self.values.update(values)

    def touch(self, **values: Any) -> None:
        if threading.current_thread().name == "ticker":
            self.ticking.set()
            self.go_on.wait(20)
        self.values.update(values)


class TickedReplicator:
    """Its pass is published by the ticker, and sends something after that."""

    sizes = [0]

    def __init__(self, state: SlowState) -> None:
        self.publish: Callable[[], None] = lambda: None
        self.ticker = threading.Thread(target=lambda: self.publish(), name="ticker")
        self._state = state

    def run_pass(self, work: PassWork, *_arguments: Any) -> None:
        self.ticker.start()
        assert self._state.ticking.wait(20)
        work.count(bytes_sent=4096)
        threading.Timer(0.2, self._state.go_on.set).start()

    def roots(self) -> Any:
        raise ConnectionLost("there are none here")


def test_ticker_does_not_take_back_what_is_said_at_the_end_of_a_pass() -> None:
    state = SlowState()
    replicator = TickedReplicator(state)
    copy = Copy(
        disks=[],
        open_tracker=lambda: None,  # type: ignore[arg-type, return-value]
        mask=None,  # type: ignore[arg-type]
        replicator=lambda **_arguments: replicator,  # type: ignore[arg-type, return-value]
        state=state,  # type: ignore[arg-type]
        max_passes=1,
        max_downtime=1.0,
        audit=False,
    )
    replicator.publish = copy.publish
    copy.run_pass("delta", NothingNew(), lambda: False, total=0)
    replicator.ticker.join()
    assert state.values["totals"]["bytes_sent"] == 4096


class Overflowing:
    """A tracker whose ring overflows in every pass, for as long as there is a storm of writes."""

    storm = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    def drain(self) -> None: ...

    def changes(self) -> DirtySource:
        return NothingNew()

    def settle(self) -> None: ...

    def give_back(self) -> None: ...

    def rescan(self, disk: int) -> None:
        self.asked.append(disk)

    def mark(self, disk: int, start: int, end: int) -> None: ...

    def scanning(self, disk: int) -> bool:
        return self.storm

    def changed(self, key: ExtentKey, ranges: Ranges) -> bool:
        return self.storm

    def pending(self) -> Iterator[tuple[ExtentKey, Ranges]]:
        return iter(())

    def dirty_bytes(self) -> int:
        return EXTENT if self.storm else 0

    def state(self) -> TrackerState:
        return TrackerState("tracking", None, rescan=[DISK.id] if self.storm else [])

    def close(self, *, remove: bool) -> None: ...


class Passes:
    """A replicator that only counts its passes; `during` is called in each."""

    sizes = [EXTENT]
    complete = True
    owes = False

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.during: Callable[[str], None] = lambda _kind: None
        self.change: Callable[[], int] = lambda: 0
        self.differ: Callable[[ExtentKey, Ranges], None] = lambda _key, _ranges: None

    def connect(self, _cancelled: Any) -> None: ...

    def run_pass(self, work: PassWork, _cancelled: Any, differs: Callable[[ExtentKey, Ranges], None] | None) -> None:
        self.kinds.append(work.kind)
        assert len(self.kinds) < 20
        work.count(bytes_changed=self.change())
        if differs is not None:
            self.differ = differs
        self.during(work.kind)

    def refresh(self, _cancelled: Any, *, all_unknown: bool = False) -> None: ...

    def request(self, _cancelled: Any, _operation: str, **_more: Any) -> dict[str, Any]:
        return {"pending": 0, "damaged": 0, "sweeps": [0]}

    def roots(self) -> Any:
        raise ConnectionLost("there are none here")


def stormy() -> tuple[Copy, Overflowing, Passes]:
    tracker, passes = Overflowing(), Passes()
    copy = Copy(
        disks=[DISK],
        open_tracker=lambda: tracker,
        mask=NullMask(),
        replicator=lambda **_arguments: passes,  # type: ignore[arg-type, return-value]
        state=SlowState(),  # type: ignore[arg-type]
        max_passes=5,
        max_downtime=1.0,
        audit=True,
    )
    return copy, tracker, passes


def test_ring_that_overflows_in_every_pass_keeps_nobody_from_being_in_sync() -> None:
    copy, _tracker, passes = stormy()
    copy.catch_up(lambda: False)
    assert 3 <= len(passes.kinds) <= 6
    # While everything is read again anyhow an audit would find a reason for each difference.
    assert "audit" not in passes.kinds


def test_audit_is_made_up_for_once_the_storm_is_over() -> None:
    copy, tracker, passes = stormy()
    copy.catch_up(lambda: False)
    seen = len(passes.kinds)

    def during(kind: str) -> None:
        # The first audit is worth nothing: meanwhile it begins once more.
        tracker.storm = kind == "audit" and passes.kinds.count("audit") == 1

    passes.during = during
    tracker.storm = False
    with pytest.raises(Cancelled):
        copy.keep_in_sync(lambda: passes.kinds.count("audit") == 2)
    assert passes.kinds[seen:] == ["audit", "rescan", "audit", "delta"]
    seen = len(passes.kinds)
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        copy.keep_in_sync(lambda: time.monotonic() - begun > 1.5)
    assert len(passes.kinds) == seen


def test_what_neither_side_knows_is_not_verified() -> None:
    """The digests of both sides are the same, but of an extent there is none."""
    copy, _tracker, passes = stormy()
    passes.roots = lambda: (["00"], "00")  # type: ignore[method-assign]
    passes.request = lambda *_words, **_more: {"root_hash": "00"}  # type: ignore[method-assign]
    assert copy.verify(lambda: False, lambda _phase: None) == (["00"], "00")
    passes.complete = False
    with pytest.raises(AgentError, match="VERIFY_FAILED"):
        copy.verify(lambda: False, lambda _phase: None)
    assert passes.kinds == ["repair"] * 3


def test_cutover_makes_up_for_the_audit_before_anything_stops() -> None:
    copy, tracker, passes = stormy()
    copy.catch_up(lambda: False)
    tracker.storm = False
    seen = len(passes.kinds)
    copy.approach(None, lambda: False)
    assert "audit" in passes.kinds[seen:]
    copy.drain(frozen=True)
    assert tracker.asked == []


def test_last_pass_reads_everything_when_tracking_was_never_audited() -> None:
    copy, tracker, passes = stormy()
    copy.catch_up(lambda: False)
    copy.approach(None, lambda: False)
    assert "audit" not in passes.kinds
    tracker.storm = False
    copy.drain(frozen=True)
    assert tracker.asked == [0]


def test_audit_that_fails_while_the_proof_is_awaited_has_everything_read_again() -> None:
    copy, tracker, passes = stormy()
    copy.catch_up(lambda: False)
    tracker.storm = False
    seen = len(passes.kinds)

    def during(kind: str) -> None:
        if kind == "audit":
            passes.differ(ExtentKey(0, 0), ((0, 4096),))

    passes.during = during
    answers = iter([1, 1])
    passes.request = lambda *_words: {"pending": next(answers, 0), "sweeps": [0]}  # type: ignore[method-assign]
    copy.catch_up(lambda: False)
    assert not copy.tracking
    assert passes.kinds[seen:].count("delta") >= 3
    assert copy._state.get("sync")["mode"] == "rehash"


@pytest.mark.parametrize(("changes", "passes_needed"), [([0], 1), ([5, 0], 2), ([5, 5, 0], 3)])
def test_frozen_source_is_at_rest_when_a_full_reading_finds_nothing(changes: list[int], passes_needed: int) -> None:
    """A tracker that cannot learn any more has everything read in every pass."""
    copy, _tracker, passes = stormy()
    copy.catch_up(lambda: False)
    seen = len(passes.kinds)
    found = iter(changes)
    passes.change = lambda: next(found)
    copy.finish(frozen=True, cancelled=lambda: False)
    assert passes.kinds[seen:] == ["final"] * passes_needed


def test_frozen_source_that_keeps_changing_is_refused() -> None:
    copy, _tracker, passes = stormy()
    copy.catch_up(lambda: False)
    passes.change = lambda: 5
    with pytest.raises(AgentError, match="SOURCE_KEEPS_CHANGING"):
        copy.finish(frozen=True, cancelled=lambda: False)


def test_write_that_comes_after_its_extent_was_read_is_sent_whatever_else_was_equal() -> None:
    """Frozen, and somebody writes past the filesystems."""
    copy, tracker, passes = stormy()
    tracker.storm = False
    copy.catch_up(lambda: False)
    seen = len(passes.kinds)
    late = iter([[(ExtentKey(0, 0), ((0, 4096),))], []])
    tracker.pending = lambda: iter(next(late))  # type: ignore[method-assign]
    copy.finish(frozen=True, cancelled=lambda: False)
    assert passes.kinds[seen:] == ["final"] * 2


def test_swap_does_not_keep_a_frozen_source_from_being_at_rest() -> None:
    copy, tracker, passes = stormy()
    tracker.storm = False
    copy.catch_up(lambda: False)
    seen = len(passes.kinds)
    tracker.pending = lambda: iter([(ExtentKey(0, 0), ((0, 4096),))])  # type: ignore[method-assign]
    copy._mask.worthwhile = lambda _key, _ranges: ()  # type: ignore[method-assign]
    copy.finish(frozen=True, cancelled=lambda: False)
    assert passes.kinds[seen:] == ["final"]


def test_trace_that_cannot_be_removed_does_not_keep_a_wrong_tracker_in_use() -> None:
    copy, tracker, passes = stormy()
    tracker.storm = False

    def close(**_how: Any) -> None:
        raise OSError(16, "somebody reads it")

    tracker.close = close  # type: ignore[method-assign]
    tracker.changed = lambda _key, _ranges: False  # type: ignore[method-assign]
    passes.during = lambda kind: passes.differ(ExtentKey(0, 0), ((0, 4096),)) if kind == "audit" else None
    copy.catch_up(lambda: False)
    assert not copy.tracking
    assert passes.kinds[-1] == "delta"
