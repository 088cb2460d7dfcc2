# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left out of a copy is sent as soon as it may be in use, whatever the looks at the disk say in between."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.mask import NullMask, UsedBlocksMask
from fleetlift_agent.usedblocks.map import UsedMap, VolumeUse
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.wire import ExtentKey
from hypothesis import given
from hypothesis import strategies as st

BLOCKS = 64
BLOCK = 4096
SIZE = BLOCKS * BLOCK


def runs(blocks: set[int], limit: int = 1 << 20) -> FreeRuns:
    free = FreeRuns(limit)
    for block in sorted(blocks):
        free.add(block * BLOCK, (block + 1) * BLOCK)
    return free


def found(blocks: set[int], *, exact: bool = False, swap: bool = False, limit: int = 1 << 20) -> UsedMap:
    free = runs(blocks, limit)
    content = "swap" if swap else "ext"
    volume = VolumeUse("sda1", 0, SIZE, content, "a test", exact, free.total, None, ((0, SIZE),))
    return UsedMap(SIZE, free, [volume])


class Looks:
    """What each look at the disk finds, one after the other."""

    def __init__(self, *maps: UsedMap) -> None:
        self._maps = list(maps)
        self.frozen: list[bool] = []

    def __call__(self, _source: object, frozen: bool) -> UsedMap:
        self.frozen.append(frozen)
        return self._maps.pop(0)


def mask_of(directory: Path, *maps: UsedMap) -> UsedBlocksMask:
    return UsedBlocksMask([SimpleNamespace(size=SIZE)], directory, Looks(*maps))  # type: ignore[list-item]


class Marked:
    def __init__(self) -> None:
        self.blocks: set[int] = set()

    def __call__(self, disk: int, start: int, end: int) -> None:
        assert disk == 0
        self.blocks |= set(range(start // BLOCK, -(-end // BLOCK)))


def left_out(mask: UsedBlocksMask) -> set[int]:
    return {block for start, end in mask.free(ExtentKey(0, 0)) for block in range(start // BLOCK, end // BLOCK)}


block_sets = st.sets(st.integers(0, BLOCKS - 1))


@given(st.lists(block_sets, min_size=1, max_size=5), block_sets, st.integers(1, 8))
def test_what_was_left_out_is_free_at_the_end_or_was_marked(hints: list[set[int]], last: set[int], limit: int) -> None:
    # A small limit has runs forgotten; what is forgotten must be sent.
    with TemporaryDirectory() as directory:
        maps = [found(hint, limit=limit) for hint in hints]
        mask = mask_of(Path(directory), *maps, found(last, exact=True))
        mask.begin(0)
        ever = left_out(mask)
        marked = Marked()
        for _hint in hints[1:]:
            mask.refresh(marked)
        mask.conclude(marked, frozen=True)
        assert ever - marked.blocks <= last
        assert left_out(mask) == ever - marked.blocks


def test_without_a_freeze_everything_is_sent(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, found({1, 2, 3}))
    mask.begin(0)
    marked = Marked()
    mask.conclude(marked, frozen=False)
    assert marked.blocks == {1, 2, 3}
    assert mask.free(ExtentKey(0, 0)) == []


def test_a_hint_is_no_answer_to_the_last_question(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, found({1, 2, 3}), found({1, 2, 3}, exact=False))
    mask.begin(0)
    marked = Marked()
    mask.conclude(marked, frozen=True)
    assert marked.blocks == {1, 2, 3}


def test_the_next_agent_knows_what_was_left_out(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, found({1, 2, 3, 9}), found({2, 3, 9, 10}))
    mask.begin(0)
    mask.refresh(Marked())
    after = mask_of(tmp_path, found({2}, exact=True))
    assert after.resume()
    assert left_out(after) == {2, 3, 9}
    marked = Marked()
    after.conclude(marked, frozen=True)
    assert marked.blocks == {3, 9}


def test_nothing_to_resume_is_told(tmp_path: Path) -> None:
    assert not mask_of(tmp_path).resume()


@pytest.mark.parametrize(("again", "skipped"), [({1, 2, 3}, {2, 3}), ({1}, set())])
def test_changes_inside_of_swap_are_not_sent_while_they_are_left_out(
    tmp_path: Path, again: set[int], skipped: set[int]
) -> None:
    """Swap space that was something else before is not left out: its changes count."""
    mask = mask_of(tmp_path, found(again), found({1, 2, 3}, swap=True))
    mask.begin(0)
    mask.refresh(Marked())
    ranges = ((2 * BLOCK, 2 * BLOCK),)
    sent = {
        block
        for offset, length in mask.worthwhile(ExtentKey(0, 0), ranges)
        for block in range(offset // BLOCK, (offset + length) // BLOCK)
    }
    assert sent == {2, 3} - skipped
    assert EXTENT >= SIZE


def test_what_an_earlier_agent_left_out_is_sent_when_nothing_is_to_be_left_out(tmp_path: Path) -> None:
    assert NullMask(tmp_path).resume()
    for disk in range(2):
        (tmp_path / f"left-out.{disk}.bin").write_bytes(FreeRuns().pack())
    mask = NullMask(tmp_path)
    assert not mask.resume()
    mask.begin(0)
    assert not mask.resume(), "the other disk still lacks it"
    mask.begin(1)
    assert NullMask(tmp_path).resume()
