# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which parts of the source disks changed and are not on the target yet: one bit for each 4 KiB granule.

The bits live in small files that are mapped into memory, in the agent's directory (a tmpfs), so that they outlive a
killed agent. A file covers 8 GiB of a disk with 256 KiB and is made when the first granule in it changes. There are two
bitmaps for each disk: what is *pending*, and what a pass has *taken* but not settled. Both together need at most
64 MiB per TiB of disk; `limit` bounds it further: what does not fit turns into one flag, the rescan of that disk.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleetlift_agent.extents import EXTENT, extent_count, extent_length
from fleetlift_agent.passes import Ranges
from fleetlift_agent.wire import ExtentKey

GRANULE = 4096
CHUNK = 256 << 10
_EXTENT_BITS = EXTENT // GRANULE
_EXTENT_BYTES = _EXTENT_BITS // 8
_CHUNK_BITS = CHUNK * 8
_CHUNK_EXTENTS = CHUNK // _EXTENT_BYTES
_NONZERO = re.compile(rb"[^\0]")

# The flags file: one byte that says "events are out of the ring and not in the map yet", then two for each disk.
_UNSETTLED_READ = 0
_FIRST_DISK = 16
_PENDING, _TAKEN = 0, 1


class MapFullError(Exception):
    """The bitmaps may not grow further."""


class _Budget:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class _Bitmap:
    """The bits of one disk in files that are made when needed."""

    def __init__(self, directory: Path, name: str, budget: _Budget) -> None:
        self._directory = directory
        self._name = name
        self._budget = budget
        self._chunks: dict[int, mmap.mmap] = {}
        for path in directory.glob(f"{name}.*"):
            if path.stat().st_size == CHUNK:
                self._map(int(path.suffix[1:]), path)
            else:
                # Killed while it was made: nothing was marked in it.
                path.unlink()

    def set(self, first: int, last: int) -> None:
        """Set the bits first..last, both included. Raises MapFullError."""
        while first <= last:
            number, low = divmod(first, _CHUNK_BITS)
            high = min(last - number * _CHUNK_BITS, _CHUNK_BITS - 1)
            _set_bits(self._chunk(number), low, high)
            first = number * _CHUNK_BITS + high + 1

    def take(self, extent: int) -> bytes:
        """The bits of an extent, which are cleared."""
        number, position = _place(extent)
        chunk = self._chunks[number]
        bits = chunk[position : position + _EXTENT_BYTES]
        chunk[position : position + _EXTENT_BYTES] = bytes(_EXTENT_BYTES)
        return bits

    def get(self, extent: int) -> bytes:
        number, position = _place(extent)
        chunk = self._chunks.get(number)
        return bytes(_EXTENT_BYTES) if chunk is None else chunk[position : position + _EXTENT_BYTES]

    def merge(self, extent: int, bits: bytes) -> None:
        """Set, in an extent, the bits that are given. Raises MapFullError."""
        number, position = _place(extent)
        chunk = self._chunk(number)
        both = int.from_bytes(chunk[position : position + _EXTENT_BYTES], "little") | int.from_bytes(bits, "little")
        chunk[position : position + _EXTENT_BYTES] = both.to_bytes(_EXTENT_BYTES, "little")

    def next_extent(self, start: int) -> int | None:
        """The first extent, from `start` on, with a bit set."""
        for number in sorted(self._chunks):
            if number < start // _CHUNK_EXTENTS:
                continue
            position = max(0, start - number * _CHUNK_EXTENTS) * _EXTENT_BYTES
            found = _NONZERO.search(self._chunks[number], position)
            if found:
                return number * _CHUNK_EXTENTS + found.start() // _EXTENT_BYTES
        return None

    def count(self) -> int:
        # int.bit_count came with Python 3.10.
        return sum(
            bin(int.from_bytes(chunk[position : position + 4096], "little")).count("1")
            for chunk in self._chunks.values()
            for position in range(0, CHUNK, 4096)
        )

    def clear(self) -> None:
        for number in list(self._chunks):
            self._chunks.pop(number).close()
            self._path(number).unlink()
            self._budget.used -= CHUNK

    def close(self) -> None:
        for chunk in self._chunks.values():
            chunk.close()

    def _chunk(self, number: int) -> mmap.mmap:
        chunk = self._chunks.get(number)
        if chunk is None:
            if self._budget.used + CHUNK > self._budget.limit:
                raise MapFullError
            path = self._path(number)
            with path.open("wb") as file:
                try:
                    # Memory must be there now: a mapped file in a full tmpfs ends the process with SIGBUS.
                    os.posix_fallocate(file.fileno(), 0, CHUNK)
                except OSError as error:
                    path.unlink()
                    raise MapFullError from error
            chunk = self._map(number, path)
        return chunk

    def _map(self, number: int, path: Path) -> mmap.mmap:
        with path.open("r+b") as file:
            chunk = mmap.mmap(file.fileno(), CHUNK)
        self._chunks[number] = chunk
        self._budget.used += CHUNK
        return chunk

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}.{number}"


class DirtyMap:
    """The changed granules of a set of disks (sizes in bytes); thread-safe.

    A new map asks for a rescan of every disk, for nothing is on the target. A map that is opened again (`resume`) holds
    everything that was pending, and what was taken and not settled.
    """

    def __init__(self, directory: Path, sizes: Sequence[int], *, limit: int, resume: bool = False) -> None:
        if not resume:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sizes = tuple(sizes)
        self._lock = threading.Lock()
        self._budget = _Budget(limit)
        flags = directory / "flags"
        new = not flags.exists()
        length = _FIRST_DISK + 2 * len(sizes)
        with flags.open("w+b" if new else "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, length)
            self._flags = mmap.mmap(file.fileno(), length)
        self._pending = [_Bitmap(directory, f"{disk}.pending", self._budget) for disk in range(len(sizes))]
        self._taken = [_Bitmap(directory, f"{disk}.taken", self._budget) for disk in range(len(sizes))]
        for disk in range(len(sizes)):
            if new:
                self._rescan(disk)
            else:
                self._give_back(disk)
        self.interrupted = bool(self._flags[_UNSETTLED_READ])
        self._flags[_UNSETTLED_READ] = 0

    def mark(self, disk: int, offset: int, length: int) -> bool:
        """These bytes of the disk changed. False when they do not fit the disk or memory: it is rescanned then."""
        if length <= 0:
            return True
        with self._lock:
            if offset < 0 or offset + length > self.sizes[disk]:
                self._rescan(disk)
                return False
            if self._flag(disk, _PENDING) and not self._flag(disk, _TAKEN):
                # The whole disk is read by a pass that has not begun: no need to know more.
                return True
            try:
                self._pending[disk].set(offset // GRANULE, (offset + length - 1) // GRANULE)
            except MapFullError:
                self._rescan(disk)
                return False
            return True

    def rescan(self, disk: int) -> None:
        """Anything on this disk may have changed."""
        with self._lock:
            self._rescan(disk)

    def wants_rescan(self, disk: int) -> bool:
        with self._lock:
            return self._flag(disk, _PENDING)

    def scanning(self, disk: int) -> bool:
        """Whether a pass that runs, or the next one, reads all of this disk."""
        with self._lock:
            return self._flag(disk, _PENDING) or self._flag(disk, _TAKEN)

    def changed(self, disk: int, extent: int, ranges: Ranges) -> bool:
        """Whether every granule of these ranges of an extent waits for a pass."""
        with self._lock:
            if self._flag(disk, _PENDING):
                return True
            bits = int.from_bytes(self._pending[disk].get(extent), "little")
        return all(bits >> granule & 1 for granule in _granules(ranges))

    def pending(self) -> Iterator[tuple[ExtentKey, Ranges]]:
        """What waits for a pass, and goes on to wait; without the disks that wait as a whole."""
        for disk, size in enumerate(self.sizes):
            extent: int | None = -1
            while extent is not None:
                with self._lock:
                    extent = None if self._flag(disk, _PENDING) else self._pending[disk].next_extent(extent + 1)
                    bits = b"" if extent is None else self._pending[disk].get(extent)
                if extent is not None:
                    yield ExtentKey(disk, extent), _ranges(bits, extent_length(size, extent))

    def take(self, disk: int, extent: int) -> Ranges:
        """What changed in an extent, which counts as unchanged from now on: call it *before* reading the extent."""
        with self._lock:
            return self._take(disk, extent)

    def take_next(self, disk: int, start: int) -> tuple[int, Ranges] | None:
        """Find the next changed extent from `start` on and take it."""
        with self._lock:
            extent = self._pending[disk].next_extent(start)
            return None if extent is None else (extent, self._take(disk, extent))

    def begin_rescan(self, disk: int) -> bool:
        """Take the rescan of a disk: whether there is one. Call it before the first read of the disk."""
        with self._lock:
            wanted = self._flag(disk, _PENDING)
            if wanted:
                self._set_flag(disk, _TAKEN, 1)
                self._set_flag(disk, _PENDING, 0)
                # All of it is read from now on, so that only later changes matter.
                self._pending[disk].clear()
            return wanted

    def ranges(self, disk: int, extent: int) -> Ranges:
        """What was taken of an extent and not settled, for reading it again."""
        with self._lock:
            if self._flag(disk, _TAKEN):
                return ((0, extent_length(self.sizes[disk], extent)),)
            return _ranges(self._taken[disk].get(extent), extent_length(self.sizes[disk], extent))

    def settle(self) -> None:
        """Everything that was taken is on the target."""
        with self._lock:
            for disk, taken in enumerate(self._taken):
                taken.clear()
                self._set_flag(disk, _TAKEN, 0)

    def give_back(self) -> None:
        """A pass was given up: what it took has to be taken again."""
        with self._lock:
            for disk in range(len(self.sizes)):
                self._give_back(disk)

    def dirty_bytes(self, disk: int) -> int:
        """The bytes that the next pass has to look at on this disk."""
        with self._lock:
            if self._flag(disk, _PENDING):
                return self.sizes[disk]
            return min(self.sizes[disk], self._pending[disk].count() * GRANULE)

    @property
    def memory(self) -> int:
        """Bytes that the bitmaps hold now."""
        return self._budget.used

    def begin_read(self) -> None:
        """Events are about to leave the ring. Should the agent die before `end_read`, nothing is known any more."""
        self._flags[_UNSETTLED_READ] = 1

    def end_read(self) -> None:
        self._flags[_UNSETTLED_READ] = 0

    def close(self) -> None:
        with self._lock:
            for bitmap in [*self._pending, *self._taken]:
                bitmap.close()
            self._flags.close()

    def _take(self, disk: int, extent: int) -> Ranges:
        length = extent_length(self.sizes[disk], extent)
        bits = self._pending[disk].get(extent)
        if not any(bits):
            return ()
        if not self._flag(disk, _TAKEN):
            try:
                # Kept before it is cleared: an agent that dies in between sends it twice, not never.
                self._taken[disk].merge(extent, bits)
            except MapFullError:
                self._rescan(disk)
        self._pending[disk].take(extent)
        return _ranges(bits, length)

    def _give_back(self, disk: int) -> None:
        if self._flag(disk, _TAKEN):
            self._rescan(disk)
        taken = self._taken[disk]
        extent = taken.next_extent(0)
        while extent is not None:
            try:
                self._pending[disk].merge(extent, taken.get(extent))
            except MapFullError:
                self._rescan(disk)
            extent = taken.next_extent(extent + 1)
        taken.clear()
        self._set_flag(disk, _TAKEN, 0)

    def _rescan(self, disk: int) -> None:
        self._set_flag(disk, _PENDING, 1)

    def _flag(self, disk: int, kind: int) -> bool:
        return bool(self._flags[_FIRST_DISK + 2 * disk + kind])

    def _set_flag(self, disk: int, kind: int, value: int) -> None:
        self._flags[_FIRST_DISK + 2 * disk + kind] = value


class DirtyExtents:
    """The extents of one pass, each taken out of the map in the moment it is handed out, before it is read."""

    def __init__(self, dirty: DirtyMap) -> None:
        self._dirty = dirty

    def extents(self) -> Iterator[ExtentKey]:
        for disk, size in enumerate(self._dirty.sizes):
            if self._dirty.begin_rescan(disk):
                for extent in range(extent_count(size)):
                    # Changes up to here are part of what is read now.
                    self._dirty.take(disk, extent)
                    yield ExtentKey(disk, extent)
                continue
            found = self._dirty.take_next(disk, 0)
            while found is not None:
                yield ExtentKey(disk, found[0])
                found = self._dirty.take_next(disk, found[0] + 1)

    def ranges(self, key: ExtentKey) -> Ranges:
        """The (offset, length) pairs in the extent, in bytes, that have to be read and sent."""
        return self._dirty.ranges(key.disk, key.extent)


def _granules(ranges: Ranges) -> Iterator[int]:
    for offset, length in ranges:
        yield from range(offset // GRANULE, -(-(offset + length) // GRANULE))


def _place(extent: int) -> tuple[int, int]:
    number, index = divmod(extent, _CHUNK_EXTENTS)
    return number, index * _EXTENT_BYTES


def _set_bits(chunk: mmap.mmap, first: int, last: int) -> None:
    low, high = first >> 3, last >> 3
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
    if low == high:
        chunk[low] |= head & tail
        return
    chunk[low] |= head
    chunk[high] |= tail
    if high - low > 1:
        chunk[low + 1 : high] = b"\xff" * (high - low - 1)


def _ranges(bits: bytes, length: int) -> Ranges:
    """Neighbouring granules as (offset, length) in bytes inside an extent of `length` bytes."""
    value = int.from_bytes(bits, "little")
    ranges = []
    position = 0
    while value:
        gap = (value & -value).bit_length() - 1
        value >>= gap
        run = (~value & (value + 1)).bit_length() - 1
        start = (position + gap) * GRANULE
        ranges.append((start, min(length, start + run * GRANULE) - start))
        value >>= run
        position += gap + run
    return tuple(ranges)
