# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy, opened: its disks, its volumes as devices, its root with everything mounted that belongs to the system."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleetlift_agent import activated
from fleetlift_agent.devices import find_target, sysfs_of
from fleetlift_agent.errors import AgentError
from fleetlift_agent.usedblocks.volume import BufferedDevice, ReadInFull

from . import mounts, volume_groups
from .boot_loader import ESP_TYPES
from .names import Names
from .partition_table import TableChange, adapt_table
from .tree import Tree
from .volume_groups import VolumeGroups
from .volumes import FILESYSTEMS, CopyDisk, DiskVolume, measure, read_disk

# include/uapi/linux/fs.h: read the partition table again.
BLKRRPART = 0x125F
_RE_READ_SECONDS = 10.0
_LOCK_SECONDS = 30.0
# Journals are not replayed by somebody who only looks.
_LOOKING = {"ext4": "noload", "xfs": "norecovery,nouuid", "btrfs": "", "vfat": ""}
# A copy and its original, or another copy, may be known to the same kernel.
WRITING = {"ext4": "", "xfs": "nouuid", "btrfs": "", "vfat": "umask=0077"}
_SUBVOLUMES = ("", "@", "@/.snapshots/1/snapshot", "root", "@rootfs")
# What the system needs to be whole: not its data.
_SYSTEM_MOUNTS = ("/boot", "/boot/efi", "/efi", "/usr", "/var", "/opt", "/etc", "/usr/local", "/var/lib", "/var/tmp")


@dataclass(frozen=True)
class DiskRequest:
    """A disk to adapt: by the serial of a target's disk, or by the path of a device or image file."""

    id: str
    serial: str = ""
    path: str = ""
    size: int = 0
    device: str = ""
    aliases: tuple[str, ...] = ()
    source_serial: str = ""


@dataclass(frozen=True)
class Copy:
    """The mounted copy. ``nodes`` are the device nodes of its volumes; ``root`` is the volume with the root.

    ``groups`` are the LVM volume groups, None when there are none or this system cannot open them.
    """

    disks: tuple[CopyDisk, ...]
    names: Names
    nodes: dict[DiskVolume, Path]
    root: DiskVolume
    tree: Tree
    groups: VolumeGroups | None


def locate(disks: Sequence[DiskRequest]) -> list[tuple[DiskRequest, Path]]:
    """Where the disks are. One with a serial has to be a target's disk that nothing uses: AgentError TARGET_DISK_*."""
    found = []
    activated.release([disk.serial for disk in disks if disk.serial])
    for disk in disks:
        if disk.path:
            found.append((disk, Path(disk.path)))
            continue
        target = find_target(disk.serial, disk.size or 512)
        # Its exclusive hold would keep the partitions from being mounted.
        target.close()
        found.append((disk, target.path))
    return found


@contextmanager
def held(path: Path, locks: Path) -> Iterator[None]:
    """No other adaptation may use the disk meanwhile; its lock is in *locks*. Raises AgentError ADAPT_BUSY."""
    status = path.stat()
    number = f"{os.major(status.st_rdev)}-{os.minor(status.st_rdev)}"
    with _locked(locks / f".adapt-{number}.lock" if stat.S_ISBLK(status.st_mode) else path, path):
        yield


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    """The device manager leaves the disk alone meanwhile: https://systemd.io/BLOCK_DEVICE_LOCKING.

    Not for long: what it has to do with the disk it tries again several times a second until it may. Raises
    AgentError ADAPT_BUSY.
    """
    if not stat.S_ISBLK(path.stat().st_mode):
        yield
        return
    with _locked(path, path):
        yield


@contextmanager
def _locked(lock: Path, path: Path) -> Iterator[None]:
    flags = os.O_RDONLY if lock == path else os.O_RDWR | os.O_CREAT
    descriptor = os.open(lock, flags | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise AgentError(
                        "ADAPT_BUSY",
                        f"something else holds {path}: perhaps an adaptation that an earlier run began",
                        "Wait until it has ended and run again",
                        subject=str(path),
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def table_change(path: Path, *, grow: bool) -> TableChange | None:
    """What the disk's partition table needs. Raises AgentError PARTITION_TABLE_DAMAGED."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, sector = measure(descriptor)
        return adapt_table(BufferedDevice(descriptor), size, sector, grow=grow)
    except ReadInFull as error:
        raise _damaged(path, error) from error
    finally:
        os.close(descriptor)


def write_table(path: Path, change: TableChange) -> None:
    """Write the table, each part durable before the next: the old one stays valid until the new one is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, data in change.writes:
            os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def opened(located: Sequence[tuple[DiskRequest, Path]], work: Path, *, check: bool, root: str) -> Iterator[Copy]:
    """The copy on these disks, mounted below *work*; read-only and without a replay when *check*.

    *root* names the volume with the root as ``UUID=...`` when the copy has several. Raises AgentError: ROOT_NOT_FOUND,
    ROOT_AMBIGUOUS, LVM_UNAVAILABLE, VOLUME_UNMOUNTABLE.
    """
    nodes_directory = work / "nodes"
    with ExitStack() as stack:
        stack.enter_context(mounts.mounted("nodes", nodes_directory, "tmpfs", 0, "mode=700,size=1m"))
        disks = []
        for request, path in located:
            disks.append(look_at(request, path))
        nodes: dict[DiskVolume, Path] = {}
        for disk in disks:
            nodes.update(_nodes(disk, nodes_directory, stack, read_only=check))
        groups = volume_groups.of(disks, nodes)
        inner = [] if groups is None else groups.activate(nodes, nodes_directory, stack)
        names = Names(disks, inner)
        found, subvolume = _find_root(names, nodes, work / "probe", root)
        tree = _mount_root(found, nodes, subvolume, work / "root", stack, check)
        _mount_system(tree, names, nodes, found, stack, check)
        yield Copy(tuple(disks), names, nodes, found, tree, groups)


def look_at(request: DiskRequest, path: Path) -> CopyDisk:
    """What a disk holds. Raises AgentError PARTITION_TABLE_DAMAGED."""
    try:
        return read_disk(request.id, path, request.device, request.aliases, request.source_serial)
    except ReadInFull as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: ReadInFull) -> AgentError:
    return AgentError(
        "PARTITION_TABLE_DAMAGED",
        f"{path}: {error}",
        "Repair the partition table of the source and replicate again",
        subject=str(path),
    )


def _nodes(disk: CopyDisk, directory: Path, stack: ExitStack, *, read_only: bool) -> dict[DiskVolume, Path]:
    """A device for each volume: the kernel's own if it knows the table as it is, else a loop device."""
    status = disk.path.stat()
    is_device = stat.S_ISBLK(status.st_mode)
    known = _kernel_partitions(disk, status.st_rdev) if is_device and disk.table else {}
    found = {}
    for volume in disk.volumes:
        if is_device and not disk.table:
            found[volume] = disk.path
        elif volume.start in known:
            name, number = known[volume.start]
            found[volume] = mounts.node_for(number, name, directory)
        elif volume.content.kind:
            found[volume] = stack.enter_context(
                mounts.loop_device(disk.path, volume.start, volume.size, directory, read_only=read_only)
            )
    return found


def _kernel_partitions(disk: CopyDisk, number: int) -> dict[int, tuple[str, int]]:
    """Name and device number by the start in bytes, if the kernel's view is the disk's; empty when it cannot be."""
    wanted = {volume.start: volume.size for volume in disk.volumes}
    deadline = time.monotonic() + _RE_READ_SECONDS
    while True:
        view = _partitions_of(number)
        if {start: size for start, (_name, _number, size) in view.items() if start in wanted} == wanted:
            return {start: (name, own) for start, (name, own, _size) in view.items()}
        if not (sysfs_of(number) / "range").exists() or not _read_again(disk.path) or time.monotonic() > deadline:
            return {}
        if not _partitions_of(number):
            # A kernel without a parser for this table says that all is well.
            return {}


def _read_again(path: Path) -> bool:
    """Have the kernel read the partition table; it refuses while the device manager looks at a partition."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _attempt in range(20):
            try:
                fcntl.ioctl(descriptor, BLKRRPART, 0)
                return True
            except OSError as error:
                if error.errno != 16:
                    return False
                time.sleep(0.1)
        return False
    finally:
        os.close(descriptor)


def _partitions_of(number: int) -> dict[int, tuple[str, int, int]]:
    """By the start in bytes: name, device number and size. Sectors of 512 bytes: block/partitions/core.c."""
    found = {}
    directory = sysfs_of(number)
    for child in sorted(directory.iterdir()) if directory.is_dir() else []:
        if (child / "partition").exists():
            start, size = (int((child / name).read_text(encoding="ascii")) * 512 for name in ("start", "size"))
            major, minor = (child / "dev").read_text(encoding="ascii").strip().split(":")
            found[start] = (child.name, os.makedev(int(major), int(minor)), size)
    return found


def _find_root(names: Names, nodes: dict[DiskVolume, Path], probe: Path, wish: str) -> tuple[DiskVolume, str]:
    """The volume, and the subvolume of a btrfs, with the system."""
    candidates = []
    unmountable: dict[str, str] = {}
    wanted = names.meaning(wish).volume if wish else None
    if wish and wanted is None:
        raise AgentError(
            "ROOT_NOT_FOUND",
            f"{wish}, named as the root, is on none of the disks",
            "Correct the option root",
            {"volumes": _listed(names)},
            subject=wish,
        )
    for volume in names.volumes:
        if volume.content.kind not in FILESYSTEMS or volume.content.kind == "vfat" or volume not in nodes:
            continue
        if wanted is not None and volume != wanted:
            continue
        for subvolume in _SUBVOLUMES if volume.content.kind == "btrfs" else ("",):
            options = ",".join(filter(None, [_LOOKING[volume.content.kind], subvolume and f"subvol={subvolume}"]))
            try:
                with mounts.mounted(str(nodes[volume]), probe, volume.content.kind, mounts.MS_RDONLY, options) as here:
                    if _is_system(here):
                        candidates.append((volume, subvolume))
                        break
            except OSError as error:
                if not subvolume:
                    unmountable[volume.name] = str(error)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise AgentError(
            "ROOT_AMBIGUOUS",
            f"{len(candidates)} volumes of the copy hold a system",
            "Name the one that the target is to start with the option root, as UUID=...",
            {"volumes": _listed(names), "systems": [volume.name for volume, _subvolume in candidates]},
            subject="root",
        )
    layers = sorted({volume.content.kind for volume in names.volumes} & {"LVM", "LUKS", "RAID", "bcache"})
    if layers:
        raise AgentError(
            "LVM_UNAVAILABLE" if layers == ["LVM"] else "ROOT_BEHIND_LAYER",
            f"the root filesystem is not on a plain partition, and {', '.join(layers)} cannot be opened here",
            "Use a rescue system with lvm2 and a kernel with device mapper"
            if layers == ["LVM"]
            else "Give the source virtio in its initramfs and DHCP before the last sync, and switch boot_adapt off",
            {"volumes": _listed(names), "unmountable": unmountable},
            subject="root",
        )
    raise AgentError(
        "ROOT_NOT_FOUND",
        "no volume of the copy holds a system",
        "If it is a data disk only, switch boot_adapt off; if a volume could not be mounted, the evidence says why",
        {"volumes": _listed(names), "unmountable": unmountable},
        subject="root",
    )


def _listed(names: Names) -> list[dict[str, object]]:
    return [
        {"volume": each.name, "bytes": each.size, "holds": each.content.kind, "uuid": each.content.uuid}
        for each in names.volumes
    ]


def _is_system(root: Path) -> bool:
    release = (root / "etc/os-release", root / "usr/lib/os-release", root / "etc/redhat-release", root / "etc/fstab")
    programs = (root / "sbin", root / "usr")
    return any(os.path.lexists(path) for path in release) and any(os.path.lexists(path) for path in programs)


def _mount_root(
    root: DiskVolume, nodes: dict[DiskVolume, Path], subvolume: str, target: Path, stack: ExitStack, check: bool
) -> Tree:
    options = ",".join(filter(None, [_mount_data(root, check), subvolume and f"subvol={subvolume}"]))
    flags = mounts.MS_RDONLY if check else 0
    _mount(stack, root, nodes[root], target, flags, options)
    return Tree(target)


def _mount_data(volume: DiskVolume, check: bool) -> str:
    return (_LOOKING if check else WRITING)[volume.content.kind]


def _mount(stack: ExitStack, volume: DiskVolume, node: Path, target: Path, flags: int, options: str) -> None:
    try:
        stack.enter_context(mounts.mounted(str(node), target, volume.content.kind, flags, options))
    except OSError as error:
        raise AgentError(
            "VOLUME_UNMOUNTABLE",
            f"{volume.name} ({volume.content.kind}) cannot be mounted: {error.strerror or error}",
            "Use a rescue system whose kernel has this filesystem; look at its kernel log",
            {"uuid": volume.content.uuid},
            subject=volume.name,
        ) from error


def _mount_system(
    tree: Tree, names: Names, nodes: dict[DiskVolume, Path], root: DiskVolume, stack: ExitStack, check: bool
) -> None:
    """What the copy's own fstab puts below its root, and the EFI system partition where it does not."""
    flags = mounts.MS_RDONLY if check else 0
    used = {root}
    entries = [line.split() for line in (tree.read("/etc/fstab") or "").splitlines()]
    wanted = [fields for fields in entries if len(fields) > 2 and fields[1] in _SYSTEM_MOUNTS]
    for fields in sorted(wanted, key=lambda each: each[1].count("/")):
        volume = names.meaning(fields[0]).volume or mapped_volume(names, fields[0])
        if volume is None or volume not in nodes or volume.content.kind not in FILESYSTEMS:
            continue
        given = fields[3].split(",") if len(fields) > 3 else []
        subvolume = [option for option in given if option.startswith(("subvol=", "subvolid="))]
        if volume == root and not subvolume:
            continue
        target = tree.host(fields[1])
        if target.is_dir():
            options = ",".join(filter(None, [_mount_data(volume, check), *subvolume]))
            _mount(stack, volume, nodes[volume], target, flags, options)
            used.add(volume)
    for volume in names.volumes:
        if volume.partition_type in ESP_TYPES and volume.content.kind == "vfat" and volume not in used:
            target = tree.host("/boot/efi")
            if volume in nodes and target.is_dir() and not os.path.ismount(target):
                _mount(stack, volume, nodes[volume], target, flags, _mount_data(volume, check))


def mapped_volume(names: Names, spec: str) -> DiskVolume | None:
    """The logical volume that a path of the device mapper or of its group names; their spellings differ in dashes."""
    wanted = spec.replace("--", "-")
    for volume in names.volumes:
        if volume.disk.startswith("lvm ") and wanted in _spellings(volume.disk[4:]):
            return volume
    return None


def _spellings(full_name: str) -> tuple[str, str]:
    group, _slash, own = full_name.partition("/")
    return f"/dev/{group}/{own}", f"/dev/mapper/{group}-{own}"
