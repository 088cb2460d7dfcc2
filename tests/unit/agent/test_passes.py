# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pass hands out, and when passes end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fleetlift_agent.extents import EXTENT, Range, coalesce, data_bytes, zero_bytes
from fleetlift_agent.passes import NothingNew, PassWork, WholeDisks, worth_another_pass
from fleetlift_agent.wire import ExtentKey
from hypothesis import given
from hypothesis import strategies as st

SIZES = [3 * EXTENT, EXTENT + 512]
ALL = [ExtentKey(0, 0), ExtentKey(0, 1), ExtentKey(0, 2), ExtentKey(1, 0), ExtentKey(1, 1)]


def work() -> PassWork:
    return PassWork(1, "initial", WholeDisks(SIZES), SIZES)


def take_all(one: PassWork) -> list[ExtentKey]:
    taken = []
    while (item := one.take()) is not None:
        taken.append(item[0])
    return taken


def test_every_extent_is_handed_out_once() -> None:
    one = work()
    assert take_all(one) == ALL
    assert not one.wait(0)
    for key in ALL:
        one.finish(key)
    assert one.wait(0)
    assert one.bytes_done == sum(SIZES)


def test_unacknowledged_extents_are_handed_out_again() -> None:
    one = work()
    taken = [item[0] for _ in range(3) if (item := one.take())]
    one.finish(ALL[1])
    one.requeue_open()
    assert set(take_all(one)) == set(ALL) - {ALL[1]}
    assert taken == ALL[:3]


def test_lost_extent_is_done_again_and_never_open_twice() -> None:
    one = work()
    for key in ALL[:2]:
        assert one.take() == (key, WholeDisks(SIZES).ranges(key))
        one.finish(key)
    one.redo([ALL[0], ALL[4]])
    again = take_all(one)
    assert sorted(again, key=ALL.index) == [ALL[0], ALL[2], ALL[3], ALL[4]]
    for key in again:
        one.finish(key)
    # It was open when the pass came to it in its order: what changed in between is not lost.
    assert take_all(one) == [ALL[4]]
    one.finish(ALL[4])
    assert one.wait(0)


def record(kind: str, seconds: float, changed: int) -> dict[str, Any]:
    return {"kind": kind, "seconds": seconds, "bytes_read": 1000, "bytes_changed": changed}


@pytest.mark.parametrize(
    ("passes", "another"),
    [
        ([], True),
        ([record("initial", 10, 1000)], True),
        ([record("initial", 10, 1000), record("delta", 1, 5)], False),
        ([record("initial", 10, 1000), record("delta", 99, 5)], True),
        ([record("initial", 10, 1000), record("delta", 1, 500)], True),
        ([record("initial", 10, 1000), record("delta", 1, 500), record("delta", 1, 450)], False),
        ([record("initial", 10, 1000), record("delta", 1, 500), record("delta", 1, 100)], True),
        ([record("initial", 10, 1000)] + [record("delta", 1, 500 >> n) for n in range(4)], False),
    ],
)
def test_passes_end_when_another_gains_nothing(passes: list[dict[str, Any]], another: bool) -> None:
    assert worth_another_pass(passes, max_passes=5, max_downtime=30) is another


@given(st.dictionaries(st.integers(0, 255), st.booleans(), min_size=1))
def test_ranges_stand_for_exactly_their_sub_blocks(chosen: dict[int, bool]) -> None:
    pairs = sorted(chosen.items())
    ranges = coalesce(pairs)
    assert [(at, part.zero) for part in ranges for at in range(part.first, part.first + part.count)] == pairs
    assert data_bytes(ranges, EXTENT) + zero_bytes(ranges, EXTENT) == len(pairs) * 4096
    for before, after in zip(ranges, ranges[1:]):
        assert before.first + before.count < after.first or before.zero != after.zero


def test_last_sub_block_of_a_disk_may_be_short() -> None:
    assert Range(0, 2, False).span(4096 + 512) == (0, 4096 + 512)
    assert data_bytes([Range(1, 1, False)], 4096 + 512) == 512


def test_who_waits_for_what_is_open_does_not_keep_the_others_awake() -> None:
    one = work()
    taken = take_all(one)
    asked: list[int] = []

    def read() -> None:
        while not one.wait(0.1):
            asked.append(1)
            assert one.take() is None

    readers = [threading.Thread(target=read) for _reader in range(2)]
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    for key in taken:
        one.finish(key)
    for reader in readers:
        reader.join()
    # Two that look ten times a second, for as long as it took.
    assert len(asked) < 100


def test_what_changed_while_an_extent_was_open_is_read_once_more() -> None:
    """The pass reaches, in its order, an extent that was handed out before for another reason."""
    work = PassWork(1, "delta", WholeDisks([2 * EXTENT]), [2 * EXTENT])
    owed, other = ExtentKey(0, 0), ExtentKey(0, 1)
    work.redo([owed])
    assert work.take() == (owed, ((0, EXTENT),))
    assert work.take() == (other, ((0, EXTENT),))
    assert work.take() is None
    work.finish(other)
    work.finish(owed)
    assert not work.wait(0)
    assert work.take() == (owed, ((0, EXTENT),))
    assert work.take() is None
    work.finish(owed)
    assert work.wait(0)


def test_disk_that_is_owed_again_and_again_is_handed_out_once() -> None:
    """A link that is cut all the time: what was sent meanwhile is not lacking any more."""
    sizes = [10 * EXTENT]
    lacking = {ExtentKey(0, extent) for extent in range(10)}
    work = PassWork(1, "delta", NothingNew(), sizes)
    handed_out = []
    for _cut in range(20):
        work.redo([], [0], lacking.__contains__)
        for _extent in range(2):
            taken = work.take()
            if taken is not None:
                assert taken[1] == ((0, EXTENT),)
                handed_out.append(taken[0])
        if handed_out[-1] in lacking:
            # Of the two only the first was acknowledged.
            work.finish(handed_out[-2])
            lacking.discard(handed_out[-2])
        work.requeue_open()
    while (taken := work.take()) is not None:
        work.finish(taken[0])
        lacking.discard(taken[0])
    assert not lacking
    assert len(handed_out) <= 40
    assert work.wait(0)
