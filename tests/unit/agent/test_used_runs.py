# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of byte ranges, against sets of bytes."""

from __future__ import annotations

import pytest
from fleetlift_agent.usedblocks.runs import FreeRuns, zero_bits
from hypothesis import given
from hypothesis import strategies as st

EDGES = st.sets(st.integers(0, 200), max_size=30).map(sorted)


def runs_of(edges: list[int], limit: int = 1 << 21) -> FreeRuns:
    runs = FreeRuns(limit)
    for start, end in zip(edges[::2], edges[1::2]):
        runs.add(start, end)
    return runs


def members(ranges: object) -> set[int]:
    return {byte for start, end in ranges for byte in range(start, end)}  # type: ignore[attr-defined]


@given(EDGES, st.integers(0, 210), st.integers(0, 210))
def test_parts_within_a_window_are_all_there_is(edges: list[int], start: int, end: int) -> None:
    runs = runs_of(edges)
    assert members(runs.within(start, end)) == {byte for byte in members(runs) if start <= byte < end}
    assert runs.total == len(members(runs))


@given(EDGES, EDGES)
def test_difference_is_that_of_sets(left: list[int], right: list[int]) -> None:
    assert members(runs_of(left).without(runs_of(right))) == members(runs_of(left)) - members(runs_of(right))


@given(EDGES, st.integers(2, 6))
def test_memory_is_bounded_by_forgetting_what_is_free(edges: list[int], limit: int) -> None:
    runs = runs_of(edges, limit)
    complete = members(runs_of(edges))
    assert len(runs) <= limit
    assert members(runs) <= complete
    assert len(complete) == runs.total + runs.forgotten


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, (1 << count + 8) - 1), st.just(count))))
def test_zero_bits_are_those_that_are_not_set(case: tuple[int, int]) -> None:
    bits, count = case
    found = list(zero_bits(bits, count))
    assert members(found) == {bit for bit in range(count) if not bits >> bit & 1}
    assert found == sorted(found)


def test_ranges_out_of_order_are_refused() -> None:
    runs = runs_of([10, 20])
    with pytest.raises(ValueError, match="before the end"):
        runs.add(15, 30)
