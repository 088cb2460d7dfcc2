# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An extent counts as read back only if the disk held, after its last write, what the manifest says."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from fleetlift_agent.extents import EXTENT
from fleetlift_agent.hashing import UNKNOWN, load_hash
from fleetlift_agent.manifest import MemoryManifest
from fleetlift_agent.readback import ReadBack

HASH = load_hash("sha256")


class Disk:
    """Three extents; `meanwhile` happens while one is read."""

    def __init__(self) -> None:
        self.content = [bytes([number]) * EXTENT for number in range(3)]
        self.manifest = MemoryManifest(3 * EXTENT)
        self.meanwhile: Callable[[], None] = lambda: None
        for number in range(2):
            self.manifest.set(number, HASH.extent_digest(memoryview(self.content[number])))
        self.read_back = ReadBack(self.manifest, self.read)
        self.buffer = mmap.mmap(-1, EXTENT)

    def read(self, extent: int, _buffer: mmap.mmap) -> memoryview:
        content = self.content[extent]
        self.meanwhile()
        return memoryview(content)

    def check(self, extent: int) -> bool:
        return self.read_back.check(extent, self.buffer, HASH.extent_digest)

    def write(self, extent: int, byte: int) -> None:
        self.read_back.opened(extent)
        self.manifest.set(extent, UNKNOWN)
        self.content[extent] = bytes([byte]) * EXTENT
        self.manifest.set(extent, HASH.extent_digest(memoryview(self.content[extent])))
        self.read_back.written(extent)


def test_everything_known_waits_to_be_read_back() -> None:
    disk = Disk()
    assert list(disk.read_back.unproved(None)) == [0, 1]
    assert disk.read_back.next_due() == 0
    assert disk.check(0) and disk.check(1) and disk.check(2)
    assert list(disk.read_back.unproved(None)) == []
    assert disk.read_back.next_due() is None
    disk.write(2, 7)
    assert disk.read_back.pending == 1
    assert disk.read_back.next_due() == 2


def test_what_is_written_all_the_time_keeps_nothing_else_waiting() -> None:
    disk = Disk()
    before = disk.read_back.sweeps
    handed_out = []
    for _round in range(4):
        disk.write(0, 9)
        handed_out.append(disk.read_back.next_due())
        assert disk.check(handed_out[-1])
    assert handed_out == [0, 1, 0, 0]
    assert disk.read_back.sweeps == before + 2
    disk.write(0, 9)
    assert disk.read_back.pending == 1


def test_damage_is_forgotten_by_the_manifest_and_counted() -> None:
    disk = Disk()
    disk.content[1] = b"x" * EXTENT
    assert not disk.check(1)
    assert disk.manifest.get(1) == UNKNOWN
    assert disk.read_back.damaged == 1
    assert disk.read_back.pending == 1
    disk.write(1, 9)
    assert disk.check(1)


def test_a_write_during_the_reading_leaves_nothing_proved_and_nothing_damaged() -> None:
    disk = Disk()
    disk.meanwhile = lambda: disk.write(0, 200)
    assert disk.check(0)
    assert disk.read_back.damaged == 0
    assert 0 in list(disk.read_back.unproved(None))
    assert disk.manifest.get(0) == HASH.extent_digest(memoryview(bytes([200]) * EXTENT))
    disk.meanwhile = lambda: None
    assert disk.check(0)
    assert 0 not in list(disk.read_back.unproved(None))


def test_age_asks_for_what_was_read_back_too_long_ago() -> None:
    disk = Disk()
    assert disk.check(0) and disk.check(1)
    assert list(disk.read_back.unproved(3600)) == [2]
    assert list(disk.read_back.unproved(0)) == [0, 1, 2]


def test_a_new_round_reads_all_again_and_needs_nothing_of_it() -> None:
    disk = Disk()
    assert disk.check(0) and disk.check(1)
    disk.read_back.start_round()
    assert disk.read_back.next_due() == 0
    assert disk.read_back.pending == 0
    assert list(disk.read_back.unproved(None)) == []


def test_unknown_extents_are_left_alone() -> None:
    disk = Disk()
    assert disk.check(2)
    assert disk.manifest.get(2) == UNKNOWN
    assert disk.read_back.damaged == 0


def test_who_helps_does_not_count_as_a_sweep() -> None:
    """What waited was read when the sweeps have grown by two: by the one reader that asks for the next."""
    disk = Disk()
    assert disk.read_back.next_due() == 0
    assert disk.check(0)
    before = disk.read_back.sweeps
    # Extent 1 is being read by both, and not done yet.
    assert disk.read_back.next_due() == 1
    assert [disk.read_back.last_written() for _round in range(3)] == [1, 1, 1]
    assert disk.read_back.sweeps == before
    assert disk.check(1)
    assert disk.read_back.last_written() is None


def test_who_helps_leaves_alone_what_was_read_long_ago() -> None:
    disk = Disk()
    assert disk.check(0) and disk.check(1)
    disk.read_back.start_round()
    assert disk.read_back.last_written() is None
    assert disk.read_back.next_due() == 0
