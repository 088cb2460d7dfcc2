# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free parts of a btrfs on one device: chunk tree, root tree, extent tree.

Format: fs/btrfs/ (include/uapi/linux/btrfs_tree.h) of the kernel. All numbers are little-endian. Trees are written
anew with each transaction, so that the trees the superblock points to agree with each other.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .runs import MAX_RUNS, FreeRuns
from .volume import ReadInFull, Volume

SUPERBLOCK = 65536
MAGIC = b"_BHRfS_M"
# Superblock copies (btrfs_sb_offset()); no extent is recorded for them, and the kernel keeps 64 KiB around each free
# of anything else. Nothing is allocated below 1 MiB (BTRFS_DEVICE_RANGE_RESERVED), which boot loaders use.
COPIES = (65536, 64 << 20, 256 << 30)
COPY_AREA = 65536
RESERVED = 1 << 20

# Up to metadata_uuid, raid1c34 and simple quota; not: raid56, zoned, extent tree v2, raid stripe tree.
INCOMPAT_KNOWN = 0x10F7F
METADATA_UUID = 0x400
# free space tree and its validity, verity, block group tree.
RO_KNOWN = 0xF
FLAG_SEEDING = 1 << 32
FLAGS_UNUSABLE = FLAG_SEEDING | 1 << 33 | 1 << 34 | 1 << 35

_ROOT_TREE_EXTENT = 2
_ROOT_TREE_BLOCK_GROUP = 11
_KEY_ROOT = 132
_KEY_EXTENT = 168
_KEY_METADATA = 169
_KEY_BLOCK_GROUP = 192
_KEY_DEVICE = 216
_KEY_CHUNK = 228
# BTRFS_BLOCK_GROUP_*: everything that spreads over devices; DUP (0x20) and nothing at all stay on one.
_SPREAD = 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400
_HEADER = 101
_MAX_LEVEL = 8


@dataclass(frozen=True)
class Superblock:
    """What the trees are found by; positions are logical bytes."""

    raw: bytes
    fsid: bytes
    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    log_root: int
    size: int
    device: int
    node: int
    sector: int
    bytes_used: int
    block_group_tree: bool


@dataclass(frozen=True, order=True)
class Chunk:
    """Logical bytes and where they are on the device, once or (DUP) twice."""

    start: int
    length: int
    copies: tuple[int, ...]


class ChunkMap:
    """Finds a logical position on the device."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = sorted(chunks, key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self.chunks]
        if any(first.start + first.length > second.start for first, second in zip(self.chunks, self.chunks[1:])):
            raise ReadInFull("its chunks overlap")

    def chunk_of(self, logical: int, length: int) -> Chunk:
        index = bisect_right(self._starts, logical) - 1
        if index < 0 or logical + length > self.chunks[index].start + self.chunks[index].length:
            raise ReadInFull(f"a tree points to byte {logical}, which is in no chunk")
        return self.chunks[index]

    def physical(self, logical: int, length: int) -> int:
        chunk = self.chunk_of(logical, length)
        return chunk.copies[0] + logical - chunk.start


def parse_superblock(raw: bytes, size: int) -> Superblock:
    """The superblock in *raw*, checked against the *size* in bytes of the volume. Raises :class:`ReadInFull`."""
    if raw[64:72] != MAGIC:
        raise ReadInFull("there is no btrfs superblock")
    (flags,) = struct.unpack_from("<Q", raw, 56)
    generation, root, chunk_root, log_root = struct.unpack_from("<QQQQ", raw, 72)
    (bytes_used,) = struct.unpack_from("<Q", raw, 120)
    devices, sector, node = struct.unpack_from("<QII", raw, 136)
    chunk_generation, _compat, ro_compat, incompat = struct.unpack_from("<QQQQ", raw, 164)
    root_level, chunk_level = raw[198], raw[199]
    device, device_size = struct.unpack_from("<QQ", raw, 201)
    if incompat & ~INCOMPAT_KNOWN or ro_compat & ~RO_KNOWN or flags & FLAGS_UNUSABLE:
        raise ReadInFull(
            f"it has features unknown here (incompat {incompat:#x}, ro_compat {ro_compat:#x}, flags {flags:#x})"
        )
    if devices != 1:
        raise ReadInFull(f"the filesystem spans {devices} devices")
    plausible = (
        sector in (4096, 8192, 16384, 32768, 65536)
        and node in (4096, 8192, 16384, 32768, 65536)
        and RESERVED < device_size <= size
        and max(root_level, chunk_level) < _MAX_LEVEL
    )
    if not plausible:
        raise ReadInFull("its superblock does not fit the volume")
    return Superblock(
        raw=raw,
        fsid=raw[571:587] if incompat & METADATA_UUID else raw[32:48],
        generation=generation,
        root=root,
        root_level=root_level,
        chunk_root=chunk_root,
        chunk_root_level=chunk_level,
        chunk_root_generation=chunk_generation,
        log_root=log_root,
        size=device_size,
        device=device,
        node=node,
        sector=sector,
        bytes_used=bytes_used,
        block_group_tree=bool(ro_compat & 0x8),
    )


def free_runs(volume: Volume) -> FreeRuns:
    """The byte ranges of the volume outside of all chunks, and those in chunks that no extent covers.

    Right for a filesystem that is frozen or unmounted: then the last transaction is complete and no log is pending.
    On a live one the trees may be overwritten while they are read, which is noticed and raises :class:`ReadInFull`.
    """
    superblock = parse_superblock(volume.read(SUPERBLOCK, 4096), volume.size)
    if superblock.log_root:
        raise ReadInFull("its log of synchronous writes has not been replayed")
    trees = _Trees(volume, superblock)
    chunks = trees.chunks()
    # In the order of the device: DUP chunks appear twice, and chunks are not in the order of their logical addresses.
    placed = sorted((copy, chunk) for chunk in chunks for copy in chunk.copies)
    gaps = trees.gaps(chunks)
    runs = FreeRuns()
    position = RESERVED
    for copy, chunk in placed:
        if copy < position:
            raise ReadInFull("its chunks overlap on the device, or use its first megabyte")
        _add_outside_of_copies(runs, position, copy)
        for start, end in gaps[chunk.start]:
            _add_outside_of_copies(runs, copy + start - chunk.start, copy + end - chunk.start)
        position = copy + chunk.length
    _add_outside_of_copies(runs, position, superblock.size)
    runs.forgotten += sum(gap.forgotten for gap in gaps.values())
    if volume.read(SUPERBLOCK, 4096) != superblock.raw:
        raise ReadInFull("a transaction ended while its trees were read")
    return runs


class _Trees:
    """Reads trees, and believes only blocks that are what the pointer to them says."""

    def __init__(self, volume: Volume, superblock: Superblock) -> None:
        self._volume = volume
        self._superblock = superblock
        self._map = ChunkMap(self._system_chunks())

    def chunks(self) -> list[Chunk]:
        superblock = self._superblock
        found = []
        # The chunk tree itself lies in system chunks, all of which are in the superblock.
        root = (superblock.chunk_root, superblock.chunk_root_level, superblock.chunk_root_generation)
        for _objectid, kind, offset, data in self._items(*root):
            if kind == _KEY_CHUNK:
                found.append(self._chunk(offset, data))
            elif kind == _KEY_DEVICE and offset != superblock.device:
                raise ReadInFull(f"its chunk tree knows another device ({offset})")
        self._map = ChunkMap(found)
        return self._map.chunks

    def gaps(self, chunks: list[Chunk]) -> dict[int, FreeRuns]:
        """Per start of a chunk: the logical ranges in it that hold neither data nor metadata."""
        limit = max(1024, MAX_RUNS // max(1, len(chunks)))
        found = {chunk.start: FreeRuns(limit) for chunk in chunks}
        ends = {chunk.start: chunk.start for chunk in chunks}
        used = dict.fromkeys(found, 0)
        stated: dict[int, int] = {}
        for start, length in self._extents(stated):
            chunk = self._map.chunk_of(start, length)
            if start < ends[chunk.start]:
                raise ReadInFull("its extents overlap")
            found[chunk.start].add(ends[chunk.start], start)
            ends[chunk.start] = start + length
            used[chunk.start] += length
        for chunk in chunks:
            found[chunk.start].add(ends[chunk.start], chunk.start + chunk.length)
        if stated != used:
            raise ReadInFull("its extents do not add up to what its block groups state")
        if sum(used.values()) != self._superblock.bytes_used:
            raise ReadInFull("its block groups do not add up to what its superblock states")
        return found

    def _extents(self, stated: dict[int, int]) -> Iterator[tuple[int, int]]:
        """(start, length) of each extent by logical position; fills *stated* with the bytes used per block group."""
        roots = self._roots()
        wanted = [_ROOT_TREE_EXTENT, *([_ROOT_TREE_BLOCK_GROUP] if self._superblock.block_group_tree else [])]
        for tree in wanted:
            if tree not in roots:
                raise ReadInFull(f"its root tree lacks tree {tree}")
            for start, kind, offset, data in self._items(*roots[tree]):
                if kind == _KEY_BLOCK_GROUP:
                    (stated[start],) = struct.unpack_from("<Q", data)
                elif kind == _KEY_EXTENT:
                    yield start, offset
                elif kind == _KEY_METADATA:
                    yield start, self._superblock.node

    def _roots(self) -> dict[int, tuple[int, int, int]]:
        """Position, level and generation of the trees needed here, by number."""
        superblock = self._superblock
        found = {}
        for objectid, kind, _offset, data in self._items(superblock.root, superblock.root_level, superblock.generation):
            if kind == _KEY_ROOT and objectid in (_ROOT_TREE_EXTENT, _ROOT_TREE_BLOCK_GROUP):
                if len(data) < 239 or data[238] >= _MAX_LEVEL:
                    raise ReadInFull("a tree's root is damaged")
                generation, _directory, position = struct.unpack_from("<QQQ", data, 160)
                found[objectid] = (position, data[238], generation)
        return found

    def _system_chunks(self) -> Iterator[Chunk]:
        raw = self._superblock.raw
        (length,) = struct.unpack_from("<I", raw, 160)
        if length > 2048:
            raise ReadInFull("its list of system chunks is damaged")
        position, end = 811, 811 + length
        while position < end:
            _objectid, kind, start = struct.unpack_from("<QBQ", raw, position)
            (stripes,) = struct.unpack_from("<H", raw, position + 17 + 44)
            size = 48 + 32 * stripes
            if kind != _KEY_CHUNK or not stripes or position + 17 + size > end:
                raise ReadInFull("its list of system chunks is damaged")
            yield self._chunk(start, raw[position + 17 : position + 17 + size])
            position += 17 + size

    def _chunk(self, start: int, data: bytes) -> Chunk:
        if len(data) < 80:
            raise ReadInFull("a chunk is damaged")
        length, _owner, _stripe, kind = struct.unpack_from("<QQQQ", data)
        (stripes,) = struct.unpack_from("<H", data, 44)
        if kind & _SPREAD or not 1 <= stripes <= 2 or len(data) != 48 + 32 * stripes:
            raise ReadInFull(f"a chunk has a layout unknown here ({kind:#x}, {stripes} stripes)")
        copies = []
        for index in range(stripes):
            device, offset = struct.unpack_from("<QQ", data, 48 + 32 * index)
            if device != self._superblock.device or offset + length > self._superblock.size:
                raise ReadInFull("a chunk lies outside of the device")
            copies.append(offset)
        return Chunk(start, length, tuple(copies))

    def _items(self, position: int, level: int, generation: int) -> Iterator[tuple[int, int, int, bytes]]:
        """(objectid, type, offset, data) of every item below the tree block at this logical position."""
        node = self._superblock.node
        raw = self._volume.read(self._map.physical(position, node), node)
        address, _flags = struct.unpack_from("<QQ", raw, 48)
        written, _owner, count = struct.unpack_from("<QQI", raw, 80)
        if (
            raw[32:48] != self._superblock.fsid
            or (address, raw[100], written) != (position, level, generation)
            or count > (node - _HEADER) // (33 if level else 25)
        ):
            raise ReadInFull("a tree block is damaged or was overwritten while it was read")
        for index in range(count):
            if level:
                _id, _kind, _offset, child, expected = struct.unpack_from("<QBQQQ", raw, _HEADER + index * 33)
                yield from self._items(child, level - 1, expected)
            else:
                objectid, kind, offset, start, size = struct.unpack_from("<QBQII", raw, _HEADER + index * 25)
                if _HEADER + start + size > node:
                    raise ReadInFull("a tree block is damaged")
                yield objectid, kind, offset, raw[_HEADER + start : _HEADER + start + size]


def _add_outside_of_copies(runs: FreeRuns, start: int, end: int) -> None:
    for copy in COPIES:
        if start < copy + COPY_AREA and copy < end:
            runs.add(start, copy)
            start = max(start, copy + COPY_AREA)
    runs.add(start, end)
