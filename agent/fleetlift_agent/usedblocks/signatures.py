# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies on a volume, by the signatures of filesystems and of the layers that may lie below one."""

from __future__ import annotations

from . import btrfs, ext, swap, xfs
from .volume import Volume

FILESYSTEMS = ("btrfs", "ext", "swap", "xfs")

# Superblocks of Linux RAID (1.1, 1.2) and bcache; the others of RAID lie at the end.
_RAID_MAGIC = b"\xfc\x4e\x2b\xa9"
_BCACHE_MAGIC = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")


def signatures(volume: Volume) -> set[str]:
    """The kinds of content whose signature the volume has; old signatures survive, so that there may be several."""
    start = volume.read(0, min(volume.size, 69632)).ljust(69632, b"\0")
    found = set()
    if start[ext.SUPERBLOCK + 0x38 : ext.SUPERBLOCK + 0x3A] == ext.MAGIC.to_bytes(2, "little"):
        found.add("ext")
    if start[:4] == xfs.MAGIC:
        found.add("xfs")
    if start[btrfs.SUPERBLOCK + 64 : btrfs.SUPERBLOCK + 72] == btrfs.MAGIC:
        found.add("btrfs")
    if swap.page_size(volume) is not None:
        found.add("swap")
    if start[:6] == b"LUKS\xba\xbe":
        found.add("LUKS")
    if any(start[sector : sector + 8] == b"LABELONE" for sector in (0, 512, 1024, 1536)):
        found.add("LVM")
    if _RAID_MAGIC in (start[:4], start[4096:4100], *_raid_at_the_end(volume)):
        found.add("RAID")
    if start[4096 + 24 : 4096 + 40] == _BCACHE_MAGIC:
        found.add("bcache")
    return found


def _raid_at_the_end(volume: Volume) -> list[bytes]:
    """Where the superblocks 1.0 and 0.90 would begin: md(4), drivers/md/md.c."""
    if volume.size < 1 << 18:
        return []
    sectors = volume.size // 512
    return [volume.read(position * 512, 4) for position in ((sectors - 16) & ~7, (sectors & ~127) - 128)]
