# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block devices of this host: a source disk to read, a target disk that nothing else uses."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .errors import AgentError

# include/uapi/linux/fs.h; the size in BLKGETSIZE64's number is that of size_t, the value is always 64 bits.
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKGETSIZE64 = (2 << 30) | (struct.calcsize("N") << 16) | (0x12 << 8) | 114

# include/uapi/linux/virtio_blk.h: VIRTIO_BLK_ID_BYTES. A longer serial is cut off by the host.
VIRTIO_SERIAL_BYTES = 20

# fs/btrfs: the primary superblock and, in it, the filesystem id and the magic.
BTRFS_SUPERBLOCK = 65536
BTRFS_MAGIC = b"_BHRfS_M"
# include/uapi/linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args), 1024 bytes, the fsid at 16.
BTRFS_IOC_FS_INFO = 0x8400941F

_Disk = TypeVar("_Disk", bound="_OpenDisk")


class _OpenDisk:
    """What a source and a target disk share: they hold a descriptor until closed."""

    fd: int

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self: _Disk) -> _Disk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class SourceDisk(_OpenDisk):
    """A whole disk opened for direct reads. ``size`` and ``logical_block_size`` are bytes."""

    fd: int
    path: Path
    size: int
    logical_block_size: int
    serial: str


@dataclass(frozen=True)
class TargetDisk(_OpenDisk):
    """A whole disk that this process alone may write. ``size`` and ``logical_block_size`` are bytes."""

    fd: int
    path: Path
    name: str
    size: int
    logical_block_size: int
    serial: str


@dataclass(frozen=True)
class MountRecord:
    """One line of /proc/<pid>/mountinfo (proc(5)); ``device`` is the superblock's number."""

    device: int
    root: str
    mountpoint: str
    filesystem: str
    source: str
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        return "ro" in self.super_options


def open_source(path: Path | str, expected_size: int, *, sys: Path = Path("/sys")) -> SourceDisk:
    """Open the whole disk *path* for direct reads.

    ``expected_size`` is the size in bytes that the migration was planned with. Raises :class:`AgentError` with
    SOURCE_DISK_NOT_FOUND, SOURCE_DISK_NOT_A_DISK, SOURCE_DISK_SIZE_CHANGED or SOURCE_DISK_UNREADABLE.
    """
    path = Path(path)
    subject = str(path)
    try:
        number = block_number(path)
    except FileNotFoundError as error:
        raise AgentError(
            "SOURCE_DISK_NOT_FOUND",
            f"there is no device {path} on this server",
            "Run the preflight again and correct the disk mapping of this source",
            {"error": str(error)},
            subject=subject,
        ) from error
    if number is None:
        raise AgentError(
            "SOURCE_DISK_NOT_A_DISK",
            f"{path} is not a block device",
            "Name a whole disk such as /dev/sda in the disk mapping of this source",
            subject=subject,
        )
    if (sysfs_of(number, sys) / "partition").exists():
        raise AgentError(
            "SOURCE_DISK_NOT_A_DISK",
            f"{path} is a partition, and only whole disks are replicated",
            "Name the disk that holds the partition in the disk mapping of this source",
            subject=subject,
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise AgentError(
            "SOURCE_DISK_UNREADABLE",
            f"{path} cannot be opened for direct reads: {error.strerror}",
            "Run the agent as root and check the kernel log for errors of this disk",
            {"errno": errno.errorcode.get(error.errno or 0, "")},
            subject=subject,
        ) from error
    try:
        size = device_size(fd)
        if size != expected_size:
            raise AgentError(
                "SOURCE_DISK_SIZE_CHANGED",
                f"{path} has {size} bytes, but the migration was planned for {expected_size} bytes",
                "Run the preflight again; if the disk was resized on purpose, start a new migration",
                {"size": size, "expected_size": expected_size},
                subject=subject,
            )
        return SourceDisk(fd, path, size, logical_block_size(fd), serial_of(sysfs_of(number, sys)))
    except BaseException:
        os.close(fd)
        raise


def find_target(
    serial: str,
    minimum_size: int,
    *,
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    proc: Path = Path("/proc"),
) -> TargetDisk:
    """Open, exclusively and for writing, the one disk with *serial* that has at least ``minimum_size`` bytes.

    The kernel (/sys/block/<name>/serial) and udev (/dev/disk/by-id/virtio-<serial>) must name the same disk. It must
    be free: no mount, swap or holder on it or its partitions. Each refusal has a code of its own, all of them
    TARGET_DISK_*; nothing is written in any case.
    """
    wanted = serial.strip()[:VIRTIO_SERIAL_BYTES]
    name = _target_name(serial, wanted, sys, dev)
    family = tuple(device_family(number_of(sys / "block" / name / "dev"), sys))
    node = _node(name, dev)
    _check_node(node, family[0], serial)
    _check_unused(serial, name, family, sys=sys, dev=dev, proc=proc)
    try:
        fd = os.open(node, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise AgentError(
                "TARGET_DISK_IN_USE",
                f"the kernel says that something holds the disk {node} with serial {serial}",
                "Find the holder (another agent, a mount in another namespace, a volume manager) and end it",
                {"device": str(node)},
                subject=serial,
            ) from error
        raise AgentError(
            "TARGET_DISK_READ_ONLY" if error.errno in (errno.EACCES, errno.EROFS) else "TARGET_DISK_UNUSABLE",
            f"{node} cannot be opened for writing: {error.strerror}",
            "Check the state of this disk in the cloud's console and the kernel log of the landing",
            {"errno": errno.errorcode.get(error.errno or 0, "")},
            subject=serial,
        ) from error
    try:
        return _measured_target(fd, node, name, serial, minimum_size)
    except BaseException:
        os.close(fd)
        raise


def _target_name(serial: str, wanted: str, sys: Path, dev: Path) -> str:
    """The kernel's name of the disk that kernel and udev both call *wanted*."""
    seen = {block.name: serial_of(block) for block in sorted((sys / "block").iterdir())}
    evidence = {name: text for name, text in seen.items() if text}
    names = [name for name, text in seen.items() if wanted and text[:VIRTIO_SERIAL_BYTES] == wanted]
    if not names:
        raise AgentError(
            "TARGET_DISK_NOT_FOUND",
            f"no disk here has the serial {serial}",
            "Check that the disk is attached to this instance and that the mapping names its disk id",
            {"serials": evidence},
            subject=serial,
        )
    if len(names) > 1:
        raise AgentError(
            "TARGET_DISK_AMBIGUOUS",
            f"{len(names)} disks have the serial {serial}: {', '.join(names)}",
            "Detach the disk that does not belong to this instance",
            {"serials": evidence},
            subject=serial,
        )
    link = dev / "disk" / "by-id" / f"virtio-{wanted}"
    try:
        linked = link.resolve(strict=True)
    except FileNotFoundError as error:
        raise AgentError(
            "TARGET_DISK_NOT_FOUND",
            f"the kernel calls {names[0]} the disk {serial}, but {link} does not exist to confirm it",
            "Wait until the device manager of the landing has settled, or run `udevadm trigger`, and try again",
            {"serials": evidence},
            subject=serial,
        ) from error
    if linked != _node(names[0], dev).resolve():
        raise AgentError(
            "TARGET_DISK_AMBIGUOUS",
            f"the kernel calls {names[0]} the disk {serial}, but {link} points to {linked}",
            "Run `udevadm trigger` in the landing and try again; never write to either disk by hand",
            {"serials": evidence, "link": str(linked)},
            subject=serial,
        )
    return names[0]


def _check_node(node: Path, number: int, serial: str) -> None:
    """The node in /dev must be the device that /sys describes."""
    try:
        actual = block_number(node)
    except FileNotFoundError:
        actual = None
    if actual != number:
        raise AgentError(
            "TARGET_DISK_NOT_FOUND",
            f"{node} is not the block device {_colon(number)} that the kernel calls {node.name}",
            "Restart the landing so that its device nodes are made anew",
            {"expected": _colon(number), "found": "no block device" if actual is None else _colon(actual)},
            subject=serial,
        )


def _check_unused(serial: str, name: str, family: tuple[int, ...], *, sys: Path, dev: Path, proc: Path) -> None:
    mounted = [mount.mountpoint for mount in mounts_on(family, proc / "self" / "mountinfo", sys=sys, dev=dev)]
    if "/" in mounted:
        raise AgentError(
            "TARGET_DISK_IS_ROOT",
            f"the disk {name} with serial {serial} holds the running system's root filesystem",
            "Put the target into its landing first: disks are only written from there",
            {"mountpoints": mounted},
            subject=serial,
        )
    if mounted:
        raise AgentError(
            "TARGET_DISK_MOUNTED",
            f"the disk {name} with serial {serial} is mounted at {', '.join(mounted)}",
            "Unmount it in the landing and try again",
            {"mountpoints": mounted},
            subject=serial,
        )
    swaps = [path for path in _swap_devices(proc / "swaps") if _block_number_or_none(path) in family]
    if swaps:
        raise AgentError(
            "TARGET_DISK_SWAP",
            f"the disk {name} with serial {serial} is used as swap space",
            "Run `swapoff` for it in the landing and try again",
            {"swap": [str(path) for path in swaps]},
            subject=serial,
        )
    holders = sorted({holder.name for number in family for holder in _entries(sysfs_of(number, sys) / "holders")})
    if holders:
        raise AgentError(
            "TARGET_DISK_IN_USE",
            f"the disk {name} with serial {serial} is part of {', '.join(holders)}",
            "Deactivate the volume group, RAID array or mapping in the landing and try again",
            {"holders": holders},
            subject=serial,
        )


def _measured_target(fd: int, node: Path, name: str, serial: str, minimum_size: int) -> TargetDisk:
    size = device_size(fd)
    if size < minimum_size:
        raise AgentError(
            "TARGET_DISK_TOO_SMALL",
            f"{node} with serial {serial} has {size} bytes, but its source has {minimum_size} bytes",
            "Enlarge the cloud disk to at least the size of the source disk, or map the source to a larger disk",
            {"size": size, "minimum_size": minimum_size},
            subject=serial,
        )
    if struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0]:
        raise AgentError(
            "TARGET_DISK_READ_ONLY",
            f"{node} with serial {serial} is read-only",
            "Check the state of this disk in the cloud's console",
            {"device": str(node)},
            subject=serial,
        )
    return TargetDisk(fd, node, name, size, logical_block_size(fd), serial)


def device_size(fd: int) -> int:
    """The size of the open block device in bytes."""
    return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def logical_block_size(fd: int) -> int:
    """The unit in bytes that direct I/O on the open block device must be aligned to."""
    return int(struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])


def serial_of(block: Path) -> str:
    """The serial that /sys tells about the disk at *block*: virtio, NVMe and SCSI keep it in different places."""
    for attribute in ("serial", "device/serial"):
        text = _attribute(block / attribute)
        if text:
            return text
    try:
        page = (block / "device" / "vpd_pg80").read_bytes()
    except OSError:
        # Only SCSI disks have this page, and not all of them.
        return ""
    # SPC-4 7.8.15: four bytes of header, the last two of them the length.
    return page[4 : 4 + int.from_bytes(page[2:4], "big")].decode("ascii", "replace").strip(" \0")


def sysfs_of(number: int, sys: Path = Path("/sys")) -> Path:
    """The directory in /sys of the block device with this number."""
    return sys / "dev" / "block" / _colon(number)


def appearance_of(number: int, sys: Path = Path("/sys")) -> int:
    """What tells a disk from another one, or from itself, that had this number before in the same boot.

    The kernel counts disks as they appear (diskseq, since Linux 5.15); before that a new directory in /sys tells, but
    its number may be given out again. 0 for a disk that /sys does not have.
    """
    block = sysfs_of(number, sys)
    text = _attribute(block / "diskseq")
    if text.isdigit():
        return int(text)
    try:
        return block.stat().st_ino
    except OSError:
        return 0


def activity_of(number: int, sys: Path = Path("/sys")) -> list[int]:
    """How many reads and writes the disk has completed since it appeared; empty where /sys does not tell."""
    fields = _attribute(sysfs_of(number, sys) / "stat").split()
    # Documentation/block/stat.rst
    return [int(fields[0]), int(fields[4])] if len(fields) > 4 else []


def device_family(number: int, sys: Path = Path("/sys")) -> list[int]:
    """*number*, its partitions, and every mapping (LVM, RAID, encryption) that holds one of them."""
    family: list[int] = []
    pending = [number]
    while pending:
        current = pending.pop(0)
        if current in family:
            continue
        family.append(current)
        block = sysfs_of(current, sys)
        pending += [number_of(child / "dev") for child in _entries(block) if (child / "partition").exists()]
        pending += [number_of(holder / "dev") for holder in _entries(block / "holders")]
    return family


def mounts_on(
    family: tuple[int, ...],
    mountinfo: Path,
    *,
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    root: Path = Path("/"),
) -> list[MountRecord]:
    """The mounts, in the order they were made, whose filesystem lives on one of these devices.

    Most filesystems carry the number of their device. Btrfs makes up a number, so that it is recognised by the
    filesystem id, in the superblock of the devices and from the mounted filesystem; ``root`` is where the mountpoints
    in *mountinfo* are found.
    """
    records = parse_mountinfo(mountinfo.read_text(encoding="utf-8", errors="surrogateescape"))
    identities: set[bytes] | None = None
    found = []
    for record in records:
        if record.device in family:
            found.append(record)
        elif record.filesystem == "btrfs":
            if identities is None:
                identities = {fsid for number in family for fsid in _btrfs_on_device(number, sys, dev)}
            if (
                _block_number_or_none(Path(record.source)) in family
                or mounted_btrfs(under(root, record.mountpoint)) in identities
            ):
                found.append(record)
    return found


def parse_mountinfo(text: str) -> list[MountRecord]:
    """The mounts in the text of a mountinfo file (proc(5))."""
    records = []
    # Not splitlines: a name may hold what that takes for the end of a line.
    for line in filter(None, text.split("\n")):
        fields = line.split(" ")
        dash = fields.index("-", 6)
        major, minor = fields[2].split(":")
        records.append(
            MountRecord(
                device=os.makedev(int(major), int(minor)),
                root=_unescaped(fields[3]),
                mountpoint=_unescaped(fields[4]),
                filesystem=fields[dash + 1],
                source=_unescaped(fields[dash + 2]),
                super_options=frozenset(fields[dash + 3].split(",")),
            )
        )
    return records


def mounted_btrfs(mountpoint: Path) -> bytes | None:
    """The filesystem id of the btrfs that is reached at *mountpoint*; None when it is none or is hidden."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Mounted over, or outside of this process' root.
        return None
    try:
        return bytes(fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, bytes(1024))[16:32])
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise
    finally:
        os.close(fd)


def under(root: Path, mountpoint: str) -> Path:
    """*mountpoint* as seen from outside of *root*."""
    return root / mountpoint.lstrip("/")


def _btrfs_on_device(number: int, sys: Path, dev: Path) -> Iterator[bytes]:
    node = _node(os.path.basename(os.path.realpath(sysfs_of(number, sys))), dev)
    if _block_number_or_none(node) != number:
        return
    with node.open("rb", buffering=0) as device:
        superblock = os.pread(device.fileno(), 4096, BTRFS_SUPERBLOCK)
    if superblock[64:72] == BTRFS_MAGIC:
        yield superblock[32:48]


def _swap_devices(swaps: Path) -> list[Path]:
    """The devices in /proc/swaps, which starts with a headline; a host without swap support has no such file."""
    try:
        lines = swaps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    except FileNotFoundError:
        return []
    return [Path(_unescaped(line.split()[0])) for line in lines if line.strip()]


def block_number(path: Path) -> int | None:
    """The device number of the block device *path*; None when it is something else."""
    status = path.stat()
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _block_number_or_none(path: Path) -> int | None:
    try:
        return block_number(path)
    except OSError:
        # The text is a name that the kernel was once given; it need not exist here.
        return None


def _node(name: str, dev: Path) -> Path:
    """The node of the kernel's *name*, which has ! where the node's path has / (cciss!c0d0)."""
    return dev / name.replace("!", "/")


def number_of(attribute: Path) -> int:
    """The device number in an attribute `dev` of /sys."""
    major, minor = attribute.read_text(encoding="ascii").strip().split(":")
    return os.makedev(int(major), int(minor))


def _colon(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _attribute(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\0")
    except OSError:
        # Absent for this kind of disk, or the device does not answer for it.
        return ""


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _unescaped(text: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash in /proc."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
