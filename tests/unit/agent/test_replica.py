# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing to a target disk, past the page cache and through it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, SUB_BLOCK, SUB_BLOCKS, Range
from fleetlift_agent.replica import ReplicaDisk
from loop_pair import MIB, Loop, replica_on

SIZE = 3 * MIB + 5 * SUB_BLOCK + 512


@dataclass
class Scene:
    disk: ReplicaDisk
    loop: Loop
    # (whether past the page cache, bytes) of each write.
    writes: list[tuple[bool, int]]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    writes: list[tuple[bool, int]] = []
    pwrite = os.pwrite

    def observed(fd: int, data: memoryview, offset: int) -> int:
        done = pwrite(fd, data, offset)
        writes.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT), done))
        return done

    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        replica_on(Path(directory) / "target", 4 * MIB, SIZE) as (loop, disk),
    ):
        monkeypatch.setattr(os, "pwrite", observed)
        yield Scene(disk, loop, writes)


def aligned(content: bytes) -> memoryview:
    view = memoryview(mmap.mmap(-1, EXTENT))[: len(content)]
    view[:] = content
    return view


def test_long_writes_pass_the_page_cache_and_short_ones_are_gathered_in_it(scene: Scene) -> None:
    content = os.urandom(EXTENT)
    scene.disk.write(1, [Range(0, SUB_BLOCKS, False)], aligned(content))
    assert scene.writes == [(True, EXTENT)]
    scene.disk.write(0, [Range(3, 2, False)], aligned(content[: 2 * SUB_BLOCK]))
    assert scene.writes[1:] == [(False, 2 * SUB_BLOCK)]
    scene.disk.sync()
    assert scene.loop.content()[EXTENT : 2 * EXTENT] == content
    assert scene.loop.content()[3 * SUB_BLOCK : 5 * SUB_BLOCK] == content[: 2 * SUB_BLOCK]


def test_both_kinds_of_writes_in_any_order_leave_what_was_written_last(scene: Scene) -> None:
    chance = random.Random(7)
    expected = bytearray(4 * MIB)
    for _round in range(60):
        extent = chance.randrange(4)
        length = scene.disk.length(extent)
        count = -(-length // SUB_BLOCK)
        first = chance.randrange(count)
        some = Range(first, chance.choice((1, 2, count - first)) if first < count - 1 else 1, chance.random() < 0.2)
        start, end = some.span(length)
        content = chance.randbytes(end - start)
        scene.disk.write(extent, [some], aligned(b"" if some.zero else content))
        expected[extent * EXTENT + start : extent * EXTENT + end] = bytes(end - start) if some.zero else content
        if chance.random() < 0.3:
            # What is read past the cache is what was written through it.
            buffer = memoryview(mmap.mmap(-1, EXTENT))
            assert scene.disk.read(extent, buffer) == expected[extent * EXTENT : extent * EXTENT + length]
    scene.disk.sync()
    assert {direct for direct, _size in scene.writes} == {True, False}
    assert scene.loop.content() == expected


def test_a_device_that_wants_another_alignment_is_written_through_the_cache(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct(monkeypatch, errno.EINVAL)
    content = os.urandom(EXTENT)
    for extent in (0, 1):
        scene.disk.write(extent, [Range(0, SUB_BLOCKS, False)], aligned(content))
    scene.disk.sync()
    assert scene.writes == [(False, EXTENT)] * 2
    assert scene.loop.content()[: 2 * EXTENT] == content * 2


def test_a_failing_device_is_not_tried_in_another_way(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_direct(monkeypatch, errno.EIO)
    with pytest.raises(AgentError) as caught:
        scene.disk.write(0, [Range(0, SUB_BLOCKS, False)], aligned(os.urandom(EXTENT)))
    assert caught.value.code == "TARGET_WRITE_FAILED"
    assert scene.writes == []


def refuse_direct(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    pwrite = os.pwrite

    def refusing(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
