# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free blocks of ext2, ext3 and ext4: superblock, group descriptors, block bitmaps.

Format: Documentation/filesystems/ext4 (globals, group_descr, bitmaps) and fs/ext4/balloc.c of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .runs import FreeRuns, zero_bits
from .volume import ReadInFull, Volume

SUPERBLOCK = 1024
MAGIC = 0xEF53

# fs/ext4/ext4.h: EXT4_FEATURE_*
COMPAT_SPARSE_SUPER2 = 0x200
INCOMPAT_RECOVER = 0x4
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
# filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed, largedir, inline_data,
# encrypt, casefold. Not: compression, journal_dev (a journal for another filesystem, used from end to end).
INCOMPAT_KNOWN = 0x3F7D6
RO_SPARSE_SUPER = 0x1
RO_GDT_CSUM = 0x10
RO_BIGALLOC = 0x200
RO_METADATA_CSUM = 0x400
# sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
# readonly, project, shared_blocks, verity, orphan_present. Not: has_snapshot, replica.
RO_KNOWN = 0x1F77F
STATE_VALID = 0x1
STATE_ERRORS = 0x2
BLOCK_UNINIT = 0x2
# Bitmaps that follow each other on the disk are read together, up to this many bytes.
_BATCH = 1 << 20


@dataclass(frozen=True)
class Superblock:
    """What the layout depends on. Blocks are counted from the start of the filesystem."""

    block: int
    cluster: int
    blocks: int
    first_block: int
    blocks_per_group: int
    inode_table_blocks: int
    descriptor: int
    reserved_gdt: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    compat: int
    incompat: int
    ro_compat: int
    state: int

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def descriptors_per_block(self) -> int:
        return self.block // self.descriptor

    @property
    def descriptor_blocks(self) -> int:
        return -(-self.groups // self.descriptors_per_block)

    @property
    def checks_descriptors(self) -> bool:
        return bool(self.ro_compat & (RO_GDT_CSUM | RO_METADATA_CSUM))

    def group_start(self, group: int) -> int:
        return self.first_block + group * self.blocks_per_group

    def has_superblock(self, group: int) -> bool:
        """ext4_bg_has_super()."""
        if group == 0:
            return True
        if self.compat & COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & RO_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def in_meta_bg(self, group: int) -> bool:
        return bool(self.incompat & INCOMPAT_META_BG) and group // self.descriptors_per_block >= self.first_meta_bg

    def leading_blocks(self, group: int) -> int:
        """Blocks at the start of a group for copies of superblock and descriptors: ext4_num_base_meta_blocks()."""
        copies = 1 if self.has_superblock(group) else 0
        if self.in_meta_bg(group):
            inside = group % self.descriptors_per_block
            return copies + (1 if inside in (0, 1, self.descriptors_per_block - 1) else 0)
        if not copies:
            return 0
        table = self.first_meta_bg if self.incompat & INCOMPAT_META_BG else self.descriptor_blocks
        return copies + table + self.reserved_gdt

    def descriptor_block(self, index: int) -> int:
        """Where the index-th block of group descriptors is: descriptor_loc() of fs/ext4/super.c."""
        superblock = SUPERBLOCK // self.block
        if not self.incompat & INCOMPAT_META_BG or index < self.first_meta_bg:
            return superblock + index + 1
        group = index * self.descriptors_per_block
        behind = 1 if self.has_superblock(group) else 0
        if self.block == SUPERBLOCK and index == 0 and self.first_block == 0:
            behind += 1
        return self.group_start(group) + behind


@dataclass(frozen=True)
class Group:
    """One group descriptor, of which only the parts needed here."""

    bitmap: int
    inode_bitmap: int
    inode_table: int
    free_clusters: int
    uninitialised: bool


def parse_superblock(raw: bytes, size: int) -> Superblock:
    """The superblock in *raw*, checked against the *size* in bytes of the volume. Raises :class:`ReadInFull`."""
    if len(raw) != 1024 or _u16(raw, 0x38) != MAGIC:
        raise ReadInFull("there is no ext superblock")
    revision = _u32(raw, 0x4C)
    compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C) if revision else (0, 0, 0)
    if incompat & ~INCOMPAT_KNOWN or ro_compat & ~RO_KNOWN:
        raise ReadInFull(f"it has features unknown here (incompat {incompat:#x}, ro_compat {ro_compat:#x})")
    log_block, log_cluster = struct.unpack_from("<II", raw, 0x18)
    if log_block > 6 or (ro_compat & RO_BIGALLOC and not log_block <= log_cluster <= 30):
        raise ReadInFull("its superblock states an impossible block size")
    block = 1024 << log_block
    wide = bool(incompat & INCOMPAT_64BIT)
    inode_size = _u16(raw, 0x58) if revision else 128
    superblock = Superblock(
        block=block,
        cluster=1024 << log_cluster if ro_compat & RO_BIGALLOC else block,
        blocks=_u32(raw, 0x4) | (_u32(raw, 0x150) << 32 if wide else 0),
        first_block=_u32(raw, 0x14),
        blocks_per_group=_u32(raw, 0x20),
        inode_table_blocks=-(-_u32(raw, 0x28) * inode_size // block),
        descriptor=(_u16(raw, 0xFE) or 32) if wide else 32,
        reserved_gdt=_u16(raw, 0xCE),
        first_meta_bg=_u32(raw, 0x104),
        backup_groups=(_u32(raw, 0x24C), _u32(raw, 0x250)),
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        state=_u16(raw, 0x3A),
    )
    ratio = superblock.cluster // block
    plausible = (
        superblock.first_block < superblock.blocks <= size // block
        and superblock.first_block == (1 if block == 1024 and ratio == 1 else 0)
        and superblock.descriptor in (32, 64, 128, 256, 512, 1024)
        and superblock.descriptor >= (64 if wide else 32)
        and superblock.blocks_per_group
        and superblock.blocks_per_group % (8 * ratio) == 0
        and superblock.blocks_per_group // ratio <= 8 * block
        and 0 < superblock.inode_table_blocks < superblock.blocks_per_group
        and 128 <= inode_size <= block
    )
    if not plausible:
        raise ReadInFull("its superblock does not fit the volume")
    return superblock


def free_runs(volume: Volume, *, live: bool) -> FreeRuns:
    """The byte ranges of the volume that the filesystem calls free; the volume's end behind it is not.

    ``live`` says that the filesystem is mounted and not frozen: its bitmaps change while they are read, so that they
    are not compared with their descriptors. Otherwise any disagreement raises :class:`ReadInFull`.
    """
    superblock = parse_superblock(volume.read(SUPERBLOCK, 1024), volume.size)
    if superblock.state & STATE_ERRORS:
        raise ReadInFull("the filesystem is marked as having errors")
    if not live and superblock.incompat & INCOMPAT_RECOVER:
        raise ReadInFull("its journal has not been replayed, so that its bitmaps are not current")
    groups = _groups(volume, superblock)
    reserved = _reserved_bits(superblock, groups)
    ratio = superblock.cluster // superblock.block
    limit = superblock.blocks * superblock.block
    runs = FreeRuns()
    for number, (group, bitmap) in enumerate(zip(groups, _bitmaps(volume, superblock, groups))):
        start = superblock.group_start(number)
        count = -(-min(superblock.blocks_per_group, superblock.blocks - start) // ratio)
        used = int.from_bytes(bitmap, "little")
        for first, length in reserved.get(number, ()):
            used |= ((1 << length) - 1) << first
        free = 0
        for first, last in zero_bits(used, count):
            free += last - first
            offset = start * superblock.block
            runs.add(offset + first * superblock.cluster, min(limit, offset + last * superblock.cluster))
        if not live and free != group.free_clusters:
            raise ReadInFull(
                f"block group {number} has {free} free blocks in its bitmap, {group.free_clusters} in its descriptor"
            )
    return runs


def needs_recovery(volume: Volume) -> bool:
    """Whether the bitmaps on the disk are not current: the journal must be replayed, or ext2 was not unmounted."""
    superblock = parse_superblock(volume.read(SUPERBLOCK, 1024), volume.size)
    return bool(superblock.incompat & INCOMPAT_RECOVER) or not superblock.state & STATE_VALID


def _groups(volume: Volume, superblock: Superblock) -> list[Group]:
    groups: list[Group] = []
    for index in range(superblock.descriptor_blocks):
        raw = volume.read(superblock.descriptor_block(index) * superblock.block, superblock.block)
        count = min(superblock.descriptors_per_block, superblock.groups - len(groups))
        groups += [_group(raw, at * superblock.descriptor, superblock) for at in range(count)]
    return groups


def _group(raw: bytes, offset: int, superblock: Superblock) -> Group:
    bitmap, inode_bitmap, inode_table = struct.unpack_from("<III", raw, offset)
    free = _u16(raw, offset + 0xC)
    if superblock.descriptor >= 64:
        high = struct.unpack_from("<III", raw, offset + 0x20)
        bitmap, inode_bitmap, inode_table = (
            low | part << 32 for low, part in zip((bitmap, inode_bitmap, inode_table), high)
        )
        free |= _u16(raw, offset + 0x2C) << 16
    last = max(bitmap, inode_bitmap, inode_table + superblock.inode_table_blocks - 1)
    if not superblock.first_block < min(bitmap, inode_bitmap, inode_table) or last >= superblock.blocks:
        raise ReadInFull("a group descriptor points outside of the filesystem")
    # Without checksums of descriptors the flag means nothing: ext4_init_block_bitmap()'s callers ask for both.
    flag = bool(_u16(raw, offset + 0x12) & BLOCK_UNINIT) and superblock.checks_descriptors
    return Group(bitmap, inode_bitmap, inode_table, free, flag)


def _reserved_bits(superblock: Superblock, groups: list[Group]) -> dict[int, list[tuple[int, int]]]:
    """Per group: (first bit, count) of what holds metadata of this or another group.

    A group whose bitmap was never written has it nowhere else; for the others it guards against damage.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    ratio = superblock.cluster // superblock.block

    def keep(first: int, count: int) -> None:
        while count > 0:
            group, inside = divmod(first - superblock.first_block, superblock.blocks_per_group)
            part = min(count, superblock.blocks_per_group - inside)
            bit = inside // ratio
            found.setdefault(group, []).append((bit, -(-(inside + part) // ratio) - bit))
            first, count = first + part, count - part

    for number, group in enumerate(groups):
        keep(superblock.group_start(number), superblock.leading_blocks(number))
        if superblock.cluster > superblock.block == SUPERBLOCK and number == 0:
            # With clusters the boot block belongs to the first group, and its superblock is the second block.
            keep(0, 1 + superblock.leading_blocks(number))
        keep(group.bitmap, 1)
        keep(group.inode_bitmap, 1)
        keep(group.inode_table, superblock.inode_table_blocks)
    return found


def _bitmaps(volume: Volume, superblock: Superblock, groups: list[Group]) -> Iterator[bytes]:
    """Each group's bitmap, in order; neighbours are read together. No bits are set where there is none."""
    index = 0
    while index < len(groups):
        count = 1
        while (
            index + count < len(groups)
            and groups[index + count].bitmap == groups[index].bitmap + count
            and count * superblock.block < _BATCH
        ):
            count += 1
        batch = groups[index : index + count]
        if all(group.uninitialised for group in batch):
            raw = bytes(count * superblock.block)
        else:
            raw = volume.read(batch[0].bitmap * superblock.block, count * superblock.block)
        for at, group in enumerate(batch):
            yield b"" if group.uninitialised else raw[at * superblock.block : (at + 1) * superblock.block]
        index += count


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def _u16(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 2], "little")


def _u32(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")
