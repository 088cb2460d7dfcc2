# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free blocks of XFS: the superblock, and in each allocation group the tree of free extents by block number.

Format: "XFS Algorithms & Data Structures", and fs/xfs/libxfs/xfs_format.h of the kernel. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .runs import FreeRuns
from .volume import ReadInFull, Volume

MAGIC = b"XFSB"
# ftype, sparse inodes, meta_uuid, bigtime, (not: needs repair), nrext64, exchange range, parent pointers.
INCOMPAT_KNOWN = 0xEF
# free inode tree, reverse mapping, reflink, inode counts.
RO_KNOWN = 0xF
# XFS_BTREE_MAXLEVELS is smaller.
_MAX_LEVELS = 12


@dataclass(frozen=True)
class Superblock:
    """What the layout depends on. Blocks are counted from the start of an allocation group."""

    block: int
    blocks: int
    group_blocks: int
    groups: int
    sector: int
    version: int


def parse_superblock(raw: bytes, size: int) -> Superblock:
    """The superblock in *raw*, checked against the *size* in bytes of the volume. Raises :class:`ReadInFull`."""
    if raw[:4] != MAGIC:
        raise ReadInFull("there is no XFS superblock")
    block, blocks = struct.unpack_from(">IQ", raw, 4)
    group_blocks, groups = struct.unpack_from(">II", raw, 84)
    version, sector = struct.unpack_from(">HH", raw, 100)
    superblock = Superblock(block, blocks, group_blocks, groups, sector, version & 0xF)
    if superblock.version not in (4, 5):
        raise ReadInFull(f"its format is version {superblock.version}, which is unknown here")
    if superblock.version == 5:
        ro_compat, incompat = struct.unpack_from(">II", raw, 212)
        if ro_compat & ~RO_KNOWN or incompat & ~INCOMPAT_KNOWN:
            raise ReadInFull(f"it has features unknown here (incompat {incompat:#x}, ro_compat {ro_compat:#x})")
    if raw[126]:
        raise ReadInFull("it was never made completely")
    plausible = (
        block in (1 << shift for shift in range(9, 17))
        and sector in (1 << shift for shift in range(9, 16))
        and sector <= block
        and 0 < group_blocks <= blocks <= size // block
        and (groups - 1) * group_blocks < blocks <= groups * group_blocks
    )
    if not plausible:
        raise ReadInFull("its superblock does not fit the volume")
    return superblock


def free_runs(volume: Volume) -> FreeRuns:
    """The byte ranges of the volume that are in no use; the volume's end behind the filesystem is not among them.

    Right for a filesystem that is frozen or was cleanly unmounted. Raises :class:`ReadInFull` for any disagreement
    between the tree and the header of its group.
    """
    superblock = parse_superblock(volume.read(0, 512), volume.size)
    runs = FreeRuns()
    for group in range(superblock.groups):
        start = group * superblock.group_blocks
        length = min(superblock.group_blocks, superblock.blocks - start)
        for first, last in _group(volume, superblock, group, length):
            runs.add((start + first) * superblock.block, (start + last) * superblock.block)
    return runs


def _group(volume: Volume, superblock: Superblock, group: int, length: int) -> Iterator[tuple[int, int]]:
    base = group * superblock.group_blocks * superblock.block
    header = volume.read(base + superblock.sector, 64)
    magic, version, number, blocks, root = struct.unpack_from(">4sIIII", header, 0)
    (levels,) = struct.unpack_from(">I", header, 28)
    (free,) = struct.unpack_from(">I", header, 52)
    if magic != b"XAGF" or version != 1 or number != group or blocks != length or not 0 < levels <= _MAX_LEVELS:
        raise ReadInFull(f"the header of allocation group {group} is damaged")
    position, found = 0, 0
    for first, count in _leaves(volume, superblock, base, length, root, levels):
        if first < position or not count or first + count > length:
            raise ReadInFull(f"the free extents of allocation group {group} overlap")
        yield first, first + count
        position, found = first + count, found + count
    if found != free:
        raise ReadInFull(f"allocation group {group} lists {found} free blocks, its header says {free}")


def _leaves(
    volume: Volume, superblock: Superblock, base: int, length: int, root: int, levels: int
) -> Iterator[tuple[int, int]]:
    """(first block, count) of each record: down the left side of the tree, then along the leaves."""
    magic, header = (b"AB3B", 56) if superblock.version == 5 else (b"ABTB", 16)
    pointers = header + (superblock.block - header) // 12 * 8
    block, visited = root, 0
    for level in reversed(range(levels)):
        while True:
            visited += 1
            if not 0 < block < length or visited > length:
                raise ReadInFull("the tree of free extents points outside of its allocation group")
            raw = volume.read(base + block * superblock.block, superblock.block)
            seen, depth, records, _left, right = struct.unpack_from(">4sHHII", raw)
            if seen != magic or depth != level or records > (superblock.block - header) // (8 if not level else 12):
                raise ReadInFull("the tree of free extents is damaged")
            if level:
                (block,) = struct.unpack_from(">I", raw, pointers)
                break
            yield from struct.iter_unpack(">II", raw[header : header + records * 8])
            if right == 0xFFFFFFFF:
                return
            block = right
