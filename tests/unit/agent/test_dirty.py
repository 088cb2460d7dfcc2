# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dirty map: nothing that was marked is ever forgotten, by a pass, a crash or a lack of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleetlift_agent.dirty import CHUNK, GRANULE, DirtyExtents, DirtyMap
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.wire import ExtentKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GIB = 1 << 30
# Two files of 8 GiB and a last granule of 512 bytes.
SIZE = 12 * GIB + 3 * EXTENT + 512
LIMIT = 1 << 20


@pytest.fixture
def clean(tmp_path: Path) -> DirtyMap:
    """A map of one disk whose first pass is done."""
    dirty = DirtyMap(tmp_path / "dirty", [SIZE], limit=LIMIT)
    assert dirty.begin_rescan(0)
    dirty.settle()
    return dirty


def taken(dirty: DirtyMap) -> set[int]:
    """The granules that one pass takes."""
    source = DirtyExtents(dirty)
    found = set()
    for key in source.extents():
        for offset, length in source.ranges(key):
            start = key.extent * EXTENT + offset
            assert start + length <= dirty.sizes[key.disk]
            found |= set(range(start // GRANULE, (start + length + GRANULE - 1) // GRANULE))
    return found


def test_a_new_map_asks_for_every_extent(tmp_path: Path) -> None:
    dirty = DirtyMap(tmp_path / "dirty", [2 * EXTENT, EXTENT + 512], limit=LIMIT)
    source = DirtyExtents(dirty)
    assert list(source.extents()) == [ExtentKey(0, 0), ExtentKey(0, 1), ExtentKey(1, 0), ExtentKey(1, 1)]
    assert source.ranges(ExtentKey(1, 1)) == ((0, 512),)
    assert not dirty.wants_rescan(0)


writes = st.lists(
    st.tuples(
        st.one_of(st.integers(0, SIZE - 1), st.integers(8 * GIB - 8192, 8 * GIB + 8192), st.integers(0, 3 * EXTENT)),
        st.one_of(st.integers(1, 65536), st.integers(1, 4 * EXTENT)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=writes, second=writes)
def test_a_pass_takes_exactly_the_granules_that_were_touched(
    clean: DirtyMap, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    for batch in (first, second):
        expected = set()
        for offset, length in batch:
            length = min(length, SIZE - offset)
            assert clean.mark(0, offset, length)
            expected |= set(range(offset // GRANULE, (offset + length - 1) // GRANULE + 1))
        counted = clean.dirty_bytes(0)
        assert taken(clean) == expected
        assert min(SIZE, len(expected) * GRANULE) >= counted >= (len(expected) - 1) * GRANULE
        assert clean.dirty_bytes(0) == 0
        clean.settle()
        assert clean.ranges(0, 0) == ()


def test_a_mark_during_the_pass_belongs_to_the_next(clean: DirtyMap) -> None:
    clean.mark(0, 0, 1)
    extents = DirtyExtents(clean).extents()
    assert next(extents) == ExtentKey(0, 0)
    # The extent is being read now.
    clean.mark(0, GRANULE, 1)
    assert list(extents) == []
    clean.settle()
    assert taken(clean) == {1}


def test_a_mark_during_a_rescan_belongs_to_the_next_pass_once_its_extent_was_handed_out(clean: DirtyMap) -> None:
    clean.rescan(0)
    extents = DirtyExtents(clean).extents()
    assert next(extents) == ExtentKey(0, 0)
    clean.mark(0, 0, 1)
    clean.mark(0, 5 * EXTENT, 1)
    assert sum(1 for _ in extents) == SIZE // EXTENT
    clean.settle()
    # The later one was still to be read when it was marked.
    assert taken(clean) == {0}


def test_a_rescan_asked_for_during_a_rescan_is_not_lost(clean: DirtyMap) -> None:
    clean.rescan(0)
    extents = DirtyExtents(clean).extents()
    next(extents)
    clean.rescan(0)
    for _ in extents:
        pass
    clean.settle()
    assert clean.wants_rescan(0)


def test_changed_is_what_waits_in_every_granule(clean: DirtyMap) -> None:
    last = SIZE // EXTENT
    clean.mark(0, EXTENT + 3 * GRANULE + 100, GRANULE)
    clean.mark(0, SIZE - 1, 1)
    assert clean.changed(0, 1, ((3 * GRANULE, 2 * GRANULE),))
    assert clean.changed(0, 1, ((3 * GRANULE, GRANULE), (4 * GRANULE, 512)))
    assert not clean.changed(0, 1, ((2 * GRANULE, 2 * GRANULE),))
    assert not clean.changed(0, 1, ((3 * GRANULE, GRANULE), (5 * GRANULE, GRANULE)))
    assert not clean.changed(0, 2, ((0, GRANULE),))
    assert clean.changed(0, last, ((0, 512),))
    taken(clean)
    assert not clean.changed(0, 1, ((3 * GRANULE, 2 * GRANULE),))
    clean.rescan(0)
    assert clean.changed(0, 2, ((0, EXTENT),))


def test_what_is_pending_goes_on_to_wait(clean: DirtyMap) -> None:
    last = SIZE // EXTENT
    clean.mark(0, EXTENT + 3 * GRANULE, 2 * GRANULE)
    clean.mark(0, 9 * GIB, 1)
    clean.mark(0, SIZE - 1, 1)
    expected = [
        (ExtentKey(0, 1), ((3 * GRANULE, 2 * GRANULE),)),
        (ExtentKey(0, 9 * GIB // EXTENT), ((0, GRANULE),)),
        (ExtentKey(0, last), ((0, 512),)),
    ]
    assert list(clean.pending()) == expected
    assert list(clean.pending()) == expected
    clean.rescan(0)
    assert list(clean.pending()) == []


def test_what_a_pass_gave_up_is_taken_again(clean: DirtyMap) -> None:
    clean.mark(0, 9 * GIB, 8192)
    first = taken(clean)
    clean.mark(0, 0, 1)
    clean.give_back()
    assert taken(clean) == first | {0}
    clean.rescan(0)
    next(DirtyExtents(clean).extents())
    clean.give_back()
    assert clean.wants_rescan(0)


def test_everything_unsettled_survives_the_process(clean: DirtyMap, tmp_path: Path) -> None:
    clean.mark(0, 0, 1)
    assert taken(clean) == {0}
    clean.mark(0, 9 * GIB, 1)
    clean.begin_read()
    # Killed here: nothing is closed or flushed.
    again = DirtyMap(tmp_path / "dirty", [SIZE], limit=LIMIT, resume=True)
    assert again.interrupted
    assert not again.wants_rescan(0)
    assert taken(again) == {0, 9 * GIB // GRANULE}
    again.rescan(0)
    next(DirtyExtents(again).extents())
    assert DirtyMap(tmp_path / "dirty", [SIZE], limit=LIMIT, resume=True).wants_rescan(0)


def test_a_map_that_may_not_grow_asks_for_a_rescan_instead(tmp_path: Path) -> None:
    dirty = DirtyMap(tmp_path / "dirty", [100 * GIB, GIB], limit=2 * CHUNK)
    for disk in (0, 1):
        dirty.begin_rescan(disk)
    dirty.settle()
    assert dirty.mark(0, 0, 1)
    assert dirty.mark(1, 0, 1)
    assert not dirty.mark(0, 50 * GIB, 1)
    assert dirty.wants_rescan(0)
    assert not dirty.wants_rescan(1)
    assert dirty.memory == 2 * CHUNK


def test_memory_is_returned_when_a_pass_is_settled_and_rescanned(clean: DirtyMap) -> None:
    clean.mark(0, 0, SIZE)
    assert clean.memory == 2 * CHUNK
    for _ in DirtyExtents(clean).extents():
        pass
    assert clean.memory == 4 * CHUNK
    clean.settle()
    clean.rescan(0)
    clean.begin_rescan(0)
    assert clean.memory == 0


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE - 1, 2), (SIZE, 1)])
def test_a_write_outside_the_disk_asks_for_a_rescan(clean: DirtyMap, offset: int, length: int) -> None:
    assert not clean.mark(0, offset, length)
    assert clean.wants_rescan(0)
