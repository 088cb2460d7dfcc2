# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of byte ranges in bounded memory."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator

# 2**21 runs are 32 MiB of arrays, whatever the size of the disk.
MAX_RUNS = 1 << 21

_ZEROS = re.compile("0+")


class FreeRuns:
    """Ascending byte ranges that hold nothing anybody will read.

    Memory is 16 bytes per run and at most ``limit`` runs: when more are added the shortest are forgotten, which is
    always safe, because what is not called free is read. ``forgotten`` counts those bytes.
    """

    def __init__(self, limit: int = MAX_RUNS) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._limit = limit
        self._minimum = 1
        self.forgotten = 0

    def add(self, start: int, end: int) -> None:
        """Add a range that begins at or after the end of the last one."""
        if end <= start:
            return
        if self._ends and start < self._ends[-1]:
            raise ValueError(f"range {start}-{end} begins before the end of the one before it")
        if self._ends and start == self._ends[-1]:
            self._ends[-1] = end
            return
        self._starts.append(start)
        self._ends.append(end)
        if len(self._starts) > self._limit:
            self._forget_the_shortest()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        """Bytes in all ranges."""
        return sum(self._ends) - sum(self._starts)

    def pack(self) -> bytes:
        """The runs as bytes for `unpack` on the same host."""
        return self._starts.tobytes() + self._ends.tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> FreeRuns:
        runs = cls()
        half = len(data) // 2
        runs._starts.frombytes(data[:half])
        runs._ends.frombytes(data[half:])
        return runs

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the ranges that lie between *start* and *end*."""
        found = []
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._starts) and self._starts[index] < end:
            first, last = max(start, self._starts[index]), min(end, self._ends[index])
            if first < last:
                found.append((first, last))
            index += 1
        return found

    def common(self, other: FreeRuns) -> FreeRuns:
        """The parts of these ranges that are in the *other*'s too."""
        runs = FreeRuns(self._limit)
        for start, end in self:
            for first, last in other.within(start, end):
                runs.add(first, last)
        return runs

    def without(self, other: FreeRuns) -> Iterator[tuple[int, int]]:
        """The parts of these ranges that are in none of the *other*'s."""
        for start, end in self:
            position = start
            for first, last in other.within(start, end):
                if position < first:
                    yield position, first
                position = last
            if position < end:
                yield position, end

    def _forget_the_shortest(self) -> None:
        while len(self._starts) > self._limit // 2:
            self._minimum *= 2
            starts, ends = array("Q"), array("Q")
            for start, end in self:
                if end - start >= self._minimum:
                    starts.append(start)
                    ends.append(end)
                else:
                    self.forgotten += end - start
            self._starts, self._ends = starts, ends


def zero_bits(bits: int, count: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of zeros among the *count* lowest bits, the lowest first."""
    every = (1 << count) - 1
    bits &= every
    if bits == every:
        return
    # Only the bits up to the highest one that is set are looked at one by one: much is free from some point on.
    length = bits.bit_length()
    for match in _ZEROS.finditer(format(bits, "b")[::-1] if bits else ""):
        yield match.span()
    if length < count:
        yield length, count
