# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The geometry of replication: disks are cut into extents, extents into sub-blocks.

All sizes are bytes. The last extent of a disk and its last sub-block may be short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXTENT = 1 << 20
# What a filesystem block, a page and a tracked change are made of.
SUB_BLOCK = 4 << 10
SUB_BLOCKS = EXTENT // SUB_BLOCK
# Extent numbers travel as 32 bits; 2**32 extents are 4 EiB.
MAX_DISK = EXTENT << 32


def extent_count(disk_size: int) -> int:
    """How many extents a disk of this many bytes has."""
    return -(-disk_size // EXTENT)


def extent_length(disk_size: int, extent: int) -> int:
    """Bytes in one extent of the disk."""
    return min(EXTENT, disk_size - extent * EXTENT)


def sub_block_count(length: int) -> int:
    """How many sub-blocks an extent of this many bytes has."""
    return -(-length // SUB_BLOCK)


@dataclass(frozen=True)
class Range:
    """Consecutive sub-blocks of one extent that are all zero, or all carried as data."""

    first: int
    count: int
    zero: bool

    def span(self, length: int) -> tuple[int, int]:
        """Start and end in bytes inside an extent of `length` bytes."""
        return self.first * SUB_BLOCK, min(length, (self.first + self.count) * SUB_BLOCK)


def coalesce(sub_blocks: Iterable[tuple[int, bool]]) -> list[Range]:
    """Ranges for ascending (sub-block number, is zero) pairs; neighbours of one kind become one range."""
    ranges: list[Range] = []
    for number, zero in sub_blocks:
        last = ranges[-1] if ranges else None
        if last is not None and last.zero == zero and last.first + last.count == number:
            ranges[-1] = Range(last.first, last.count + 1, zero)
        else:
            ranges.append(Range(number, 1, zero))
    return ranges


def data_bytes(ranges: Iterable[Range], length: int) -> int:
    """Bytes of content that these ranges of an extent of `length` bytes carry."""
    return sum(end - start for start, end in (part.span(length) for part in ranges if not part.zero))


def zero_bytes(ranges: Iterable[Range], length: int) -> int:
    """Bytes that these ranges of an extent of `length` bytes turn to zero."""
    return sum(end - start for start, end in (part.span(length) for part in ranges if part.zero))
