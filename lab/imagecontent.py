# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a raw disk holds, as far as the cloud looks before it takes it: partitions, a system, its drivers.

Only read: filesystems are mounted read-only, no program of the disk is run, and no link of it is followed.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from lab import loopdisk
from lab.bootdisk import Volume, looped
from lab.command import run
from lab.errors import LabError

FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs")
DRIVER = b"virtio_blk.ko"
LARGEST_INITRAMFS = 512 * 1024 * 1024


@dataclass(frozen=True)
class Content:
    """``table`` is dos, gpt or None; ``fits`` says that no partition ends beyond the disk; ``root`` has the system."""

    table: str | None
    fits: bool
    volumes: tuple[Volume, ...]
    root: Volume | None
    virtio: bool
    cloud_init: bool


def inspect(disk: Path, mountpoint: Path) -> Content:
    """Look at the disk in the raw file ``disk``; ``mountpoint`` is made and removed."""
    table, volumes = partitions(disk)
    end = disk.stat().st_size
    fits = all(volume.start + volume.size <= end for volume in volumes)
    root, virtio, cloud_init = None, False, False
    boots = []
    for volume in volumes if fits else ():
        with mounted_volume(volume, mountpoint) as tree:
            if tree is None:
                continue
            if is_system(tree):
                root = volume
                cloud_init = exists(tree, "usr/bin/cloud-init")
                virtio = virtio or is_builtin(tree)
                boots.append(newest_has_driver(tree / "boot"))
            else:
                boots.append(newest_has_driver(tree))
    if mountpoint.exists():
        mountpoint.rmdir()
    return Content(table, fits, volumes, root, virtio or any(boots), cloud_init)


def partitions(disk: Path) -> tuple[str | None, tuple[Volume, ...]]:
    """The kind of partition table and where the partitions lie; an extended one is not one."""
    try:
        table = json.loads(run(["sfdisk", "--json", str(disk)]))["partitiontable"]
    except LabError:
        return None, ()
    sector = int(table.get("sectorsize", 512))
    found = [
        Volume(disk, entry["start"] * sector, entry["size"] * sector)
        for entry in table.get("partitions", [])
        if entry["type"] not in ("5", "f", "85")
    ]
    return (table["label"] if found else None), tuple(found)


@contextmanager
def mounted_volume(volume: Volume, mountpoint: Path) -> Iterator[Path | None]:
    """Mount a partition read-only, past its journal; None when it holds no filesystem that a system could be on."""
    with looped(volume) as device:
        kind = loopdisk.probe(device).filesystem
        if kind not in FILESYSTEMS:
            yield None
            return
        mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
        past = {"xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay"}.get(kind, "noload")
        try:
            run(["mount", "-t", kind, "-o", f"ro,nodev,nosuid,noexec,{past}", device, str(mountpoint)])
        except LabError:
            # It says that it is one, and is too damaged to be used.
            yield None
            return
        try:
            yield mountpoint
        finally:
            loopdisk.unmount(mountpoint)


def exists(tree: Path, path: str) -> bool:
    """Whether there is something at ``path``; a link counts as it is."""
    here = tree
    for part in path.split("/"):
        if here.is_symlink():
            return False
        here = here / part
    return here.is_symlink() or here.exists()


def is_system(tree: Path) -> bool:
    """Whether this is a root filesystem."""
    return exists(tree, "etc/fstab") and (exists(tree, "sbin/init") or exists(tree, "usr/sbin/init"))


def is_builtin(tree: Path) -> bool:
    """Whether the newest kernel has the driver built in."""
    lists = [path for base in ("lib", "usr/lib") for path in (tree / base / "modules").glob("*/modules.builtin")]
    newest = max(lists, key=lambda path: version_key(path.parent.name), default=None)
    return newest is not None and DRIVER in regular(newest)


def newest_has_driver(boot: Path) -> bool:
    """Whether the newest kernel's initramfs below ``boot`` has the driver."""
    files = [path for pattern in ("initrd.img-*", "initramfs-*.img", "initrd-*") for path in boot.glob(pattern)]
    kernels = [path for path in files if "kdump" not in path.name]
    newest = max(kernels, key=lambda path: version_key(path.name), default=None)
    return newest is not None and mentions(regular(newest), DRIVER)


def version_key(name: str) -> list[int]:
    """What orders kernels by their versions."""
    return [int(number) for number in re.findall(r"\d+", name)]


def regular(path: Path) -> bytes:
    """The bytes of a file of an image, none for anything that is not one or too large."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_INITRAMFS:
        return b""
    return path.read_bytes()


def mentions(initramfs: bytes, name: bytes) -> bool:
    """Whether one of an initramfs's archives, plain or compressed, has ``name`` in it."""
    if name in initramfs:
        return True
    kinds: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
        (b"\x28\xb5\x2f\xfd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data)),
        (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data)),
        (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    )
    for magic, decompress in kinds:
        # Archives begin at multiples of four bytes.
        at = initramfs.find(magic)
        while at >= 0:
            if at % 4 == 0:
                try:
                    if name in decompress(initramfs[at:]):
                        return True
                except (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError):
                    pass  # These bytes only look like the start of an archive.
            at = initramfs.find(magic, at + 1)
    return False
