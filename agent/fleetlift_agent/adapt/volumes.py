# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volumes of a copied disk: where each lies, what it holds, and by which names a configuration may call it."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from fleetlift_agent.devices import device_size, logical_block_size
from fleetlift_agent.usedblocks import btrfs, ext, swap, xfs
from fleetlift_agent.usedblocks.partitions import Partition, read_table
from fleetlift_agent.usedblocks.signatures import signatures
from fleetlift_agent.usedblocks.volume import BufferedDevice, Device, Volume

# include/uapi/linux/fs.h: drop what the page cache of a device holds.
BLKFLSBUF = 0x1261

# What hides volumes that only another layer can show.
OPAQUE = ("LUKS", "LVM", "RAID", "bcache")
FILESYSTEMS = ("btrfs", "ext4", "vfat", "xfs")


@dataclass(frozen=True)
class Content:
    """What a volume holds: a filesystem as mount(8) calls it, swap, an opaque layer, or an empty text."""

    kind: str = ""
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True)
class DiskVolume:
    """One volume. ``start`` and ``size`` are bytes; ``number`` is 0 for a disk without a partition table."""

    disk: str
    number: int
    start: int
    size: int
    partition_type: str
    partuuid: str
    content: Content

    @property
    def name(self) -> str:
        return f"{self.disk}p{self.number}" if self.number else self.disk


@dataclass(frozen=True)
class CopyDisk:
    """A disk of the copy. ``device`` is its name on the source, ``aliases`` are the links there that led to it.

    ``serial`` is the source disk's.

    ``path`` is a block device or an image file here; ``size`` and ``sector`` are bytes.
    """

    id: str
    path: Path
    size: int
    sector: int
    table: str
    volumes: tuple[DiskVolume, ...]
    device: str = ""
    aliases: tuple[str, ...] = ()
    serial: str = ""


def read_disk(disk_id: str, path: Path, device: str = "", aliases: tuple[str, ...] = (), serial: str = "") -> CopyDisk:
    """What the disk at *path* holds. Raises ReadInFull for a damaged partition table, OSError from the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, sector = measure(descriptor)
        disk = disk_behind(BufferedDevice(descriptor), disk_id, path, size, sector)
    finally:
        os.close(descriptor)
    return replace(disk, device=device, aliases=aliases, serial=serial)


def disk_behind(reader: Device, disk_id: str, path: Path, size: int, sector: int) -> CopyDisk:
    """What the disk of *size* bytes that *reader* reads holds. Raises as :func:`read_disk` does."""
    plain = [part for part in read_table(reader, size, sector) if not part.container]
    if plain:
        volumes = tuple(_volume(disk_id, reader, part) for part in plain)
    else:
        volumes = (DiskVolume(disk_id, 0, 0, size, "", "", identify(Volume(reader, 0, size))),)
    kind = "" if not plain else "gpt" if len(plain[0].kind) > 2 else "mbr"
    return CopyDisk(disk_id, path, size, sector, kind, volumes)


def measure(descriptor: int) -> tuple[int, int]:
    """Size and sector of an open block device (whose cache is dropped) or image file, in bytes."""
    status = os.fstat(descriptor)
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size, 512
    fcntl.ioctl(descriptor, BLKFLSBUF, 0)
    return device_size(descriptor), logical_block_size(descriptor)


def _volume(disk_id: str, reader: Device, part: Partition) -> DiskVolume:
    content = identify(Volume(reader, part.start, part.size))
    return DiskVolume(disk_id, part.number, part.start, part.size, part.kind, part.uuid, content)


def identify(volume: Volume) -> Content:
    """The content by its superblock; nothing when there are several signatures, for then none is to be trusted."""
    found = signatures(volume)
    if not found:
        return _vfat(volume.read(0, 512)) if volume.size >= 512 else Content()
    if len(found) > 1:
        return Content()
    kind = found.pop()
    readers = {"ext": _ext, "xfs": _xfs, "btrfs": _btrfs, "swap": _swap, "LUKS": _luks, "LVM": _lvm}
    return readers[kind](volume) if kind in readers else Content(kind)


def _ext(volume: Volume) -> Content:
    # fs/ext4/ext4.h: s_uuid and s_volume_name. The ext4 driver mounts ext2 and ext3 as well.
    raw = volume.read(ext.SUPERBLOCK, 0x100)
    return Content("ext4", str(uuid.UUID(bytes=raw[0x68:0x78])), _text(raw[0x78:0x88]))


def _xfs(volume: Volume) -> Content:
    # fs/xfs/libxfs/xfs_format.h: sb_uuid and sb_fname.
    raw = volume.read(0, 128)
    assert raw[:4] == xfs.MAGIC
    return Content("xfs", str(uuid.UUID(bytes=raw[32:48])), _text(raw[108:120]))


def _btrfs(volume: Volume) -> Content:
    # include/uapi/linux/btrfs_tree.h: fsid and label of the superblock.
    raw = volume.read(btrfs.SUPERBLOCK, 1024)
    return Content("btrfs", str(uuid.UUID(bytes=raw[32:48])), _text(raw[0x12B : 0x12B + 256]))


def _swap(volume: Volume) -> Content:
    # include/linux/swap.h: union swap_header.
    assert swap.page_size(volume) is not None
    raw = volume.read(1024, 64)
    own = raw[12:28]
    return Content("swap", "" if own == bytes(16) else str(uuid.UUID(bytes=own)), _text(raw[28:44]))


def _luks(volume: Volume) -> Content:
    # cryptsetup's on-disk format: both versions keep the UUID as text at 168.
    return Content("LUKS", _text(volume.read(168, 40)))


def _lvm(volume: Volume) -> Content:
    # lib/format_text/layout.h of lvm2: the label header, then the UUID without its dashes.
    start = volume.read(0, 2048)
    at = next(sector for sector in (0, 512, 1024, 1536) if start[sector : sector + 8] == b"LABELONE")
    raw = start[at + struct.unpack_from("<I", start, at + 20)[0] :][:32].decode("ascii", "replace")
    cuts = [0, 6, 10, 14, 18, 22, 26, 32]
    return Content("LVM", "-".join(raw[first:last] for first, last in zip(cuts, cuts[1:])))


def _vfat(start: bytes) -> Content:
    # Microsoft's FAT specification 1.03: BS_VolID and BS_VolLab, of FAT32 and of FAT12/16.
    if start[510:512] != b"\x55\xaa":
        return Content()
    for kind, serial, label in ((82, 67, 71), (54, 39, 43)):
        if start[kind : kind + 3] == b"FAT":
            number = f"{struct.unpack_from('<I', start, serial)[0]:08X}"
            name = _text(start[label : label + 11]).strip()
            return Content("vfat", f"{number[:4]}-{number[4:]}", "" if name == "NO NAME" else name)
    return Content()


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
