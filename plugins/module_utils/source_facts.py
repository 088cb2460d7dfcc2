# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a source server is made of, read from /sys, /proc and the first bytes of its disks.

Nothing here reads anything itself: every function takes text, bytes or a :class:`System`, which is the server's own in
the module ``preflight``. Neither ``lsblk`` nor ``blkid`` is needed.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .findings import Finding
from .storage_transport import transport_of

SECTOR = 512  # the unit of "size" in /sys/block, whatever the disk's own block size is

# How much of the two ends of a device is looked at: btrfs has its superblock at 64 KiB, Linux RAID 0.90 its own up to
# 128 KiB before the end.
HEAD_BYTES = 68 * 1024
TAIL_BYTES = 128 * 1024

MINIMUM_PYTHON = (3, 9)
MEMORY_NEEDED = 64 << 20
MEMORY_COMFORTABLE = 256 << 20
CLOCK_TOLERANCE = 300.0
CLOCK_LIMIT = 86400.0  # the certificates of a pair are valid for longer than that into the past

# Devices in /sys/block that are no disk of the server: in memory, made of other devices, or with exchangeable media.
NO_DISK = re.compile(
    r"(loop|ram|zram|sr|scd|fd|dm-|md|zd|mtdblock)[0-9]+(p[0-9]+)?|md_.*|mmcblk[0-9]+(boot[0-9]+|rpmb)"
)

GPT_SIGNATURE = b"EFI PART"
EXT_JOURNAL, EXT4_INCOMPAT, EXT4_RO_COMPAT = 0x4, 0x2C0, 0x78


class System(Protocol):
    """The server as the module sees it. Paths are absolute."""

    def text(self, path: str) -> str | None:
        """The content of a small file without white space around it; None when there is no such file."""

    def data(self, path: str) -> bytes | None:
        """The bytes of a small file; None when there is no such file."""

    def real(self, path: str) -> str:
        """*path* without symbolic links in it."""

    def names(self, path: str) -> list[str]:
        """The sorted names in a directory; none when there is no such directory."""

    def exists(self, path: str) -> bool:
        """Whether there is anything at *path*."""

    def ends(self, path: str, size: int) -> tuple[bytes, bytes]:
        """The first HEAD_BYTES and the last TAIL_BYTES of a device of *size* bytes. Raises ``OSError``."""

    def usage(self, mountpoint: str) -> tuple[int, int] | None:
        """Size and free bytes of the filesystem at *mountpoint*; None when it does not answer."""

    def btrfs_id(self, mountpoint: str) -> str | None:
        """The UUID of the btrfs at *mountpoint*; None when it is none."""


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo; ``number`` is major:minor of the superblock."""

    number: str
    mountpoint: str
    filesystem: str
    source: str


@dataclass(frozen=True)
class Signature:
    """What a device holds, in the words of blkid(8)."""

    type: str
    uuid: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Node:
    """A device of a disk: the disk, one of its partitions, or a volume that is made of them."""

    name: str
    number: str
    size: int
    sysfs: str

    @property
    def path(self) -> str:
        return device_path(self.name)


def device_path(name: str) -> str:
    """The path of the kernel's *name*, which has ! where the path has /."""
    return "/dev/" + name.replace("!", "/")


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the text of /proc/self/mountinfo (proc(5)), in the order they were made."""
    mounts = []
    # Not splitlines: a name may hold what that takes for the end of a line.
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        dash = fields.index("-", 6)
        mounts.append(Mount(fields[2], unescaped(fields[4]), fields[dash + 1], unescaped(fields[dash + 2])))
    return mounts


def parse_swaps(text: str) -> list[str]:
    """The devices and files in the text of /proc/swaps, which starts with a headline."""
    return [unescaped(line.split()[0]) for line in text.splitlines()[1:] if line.strip()]


def parse_os_release(text: str) -> dict[str, str]:
    """Id, version and full name in the text of an os-release file (os-release(5))."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            values[key] = re.sub(r"\\([\"$`\\'])", r"\1", value)
    return {
        "id": values.get("ID", "linux"),
        "version": values.get("VERSION_ID", ""),
        "pretty": values.get("PRETTY_NAME", values.get("NAME", "Linux")),
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """Total and available memory in bytes from the text of /proc/meminfo.

    Kernels before 3.14 do not estimate what is available: free and cached memory stand in for it.
    """
    values = {}
    for line in text.splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) >= 2 and fields[1].isdecimal():
            values[fields[0]] = int(fields[1]) * 1024
    fallback = sum(values.get(key, 0) for key in ("MemFree", "Buffers", "Cached"))
    return {"total": values.get("MemTotal", 0), "available": values.get("MemAvailable", fallback)}


def partition_table(head: bytes, logical_block_size: int, size: int) -> str:
    """``gpt``, ``dos`` or ``none``, from the first bytes of a disk of *size* bytes.

    UEFI 2.10, section 5: the GPT header is in the second logical block, and the first one protects it. The signature of
    a DOS table is also that of any boot sector, so that its entries must make sense as well.
    """
    for block in (logical_block_size, 512, 4096):
        if head[block : block + 8] == GPT_SIGNATURE:
            return "gpt"
    if head[510:512] != b"\x55\xaa" or _fat(head) is not None or head[3:11] in (b"NTFS    ", b"EXFAT   "):
        return "none"
    entries = [head[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        return "none"
    used = [entry for entry in entries if entry[4] and any(entry[12:16])]
    starts = [struct.unpack_from("<I", entry, 8)[0] for entry in used]
    return "dos" if used and all(0 < start * logical_block_size < size for start in starts) else "none"


def signature(head: bytes, tail: bytes, size: int) -> Signature | None:
    """What the device of *size* bytes holds, from its first and its last bytes; None when nothing is recognised.

    A member of a RAID comes first: a mirror's content looks like a filesystem of its own.
    """
    found = _raid_head(head) or _raid_tail(tail, size)
    for look in (_luks, _lvm, _btrfs, _xfs, _ext, _swap, _fat):
        found = found or look(head)
    return found


def _raid_head(head: bytes) -> Signature | None:
    # include/uapi/linux/raid/md_p.h: magic, the set's UUID at 16, its name at 32; version 1.1 at 0, 1.2 at 4 KiB.
    for offset in (0, 4096):
        if head[offset : offset + 4] == b"\xfc\x4e\x2b\xa9" and head[offset + 4 : offset + 8] == b"\1\0\0\0":
            return Signature(
                "linux_raid_member", _uuid(head[offset + 16 : offset + 32]), _text(head[offset + 32 : offset + 64])
            )
    return None


def _raid_tail(tail: bytes, size: int) -> Signature | None:
    # Version 1.0: at least 8 KiB before the end, on a 4 KiB boundary. Version 0.90: the last whole 64 KiB but one.
    start = size - len(tail)
    modern = ((size // SECTOR - 16) & ~7) * SECTOR - start
    if modern >= 0 and tail[modern : modern + 8] == b"\xfc\x4e\x2b\xa9\1\0\0\0":
        return Signature(
            "linux_raid_member", _uuid(tail[modern + 16 : modern + 32]), _text(tail[modern + 32 : modern + 64])
        )
    old = (size & ~0xFFFF) - 0x10000 - start
    if old >= 0 and tail[old : old + 8] == b"\xfc\x4e\x2b\xa9\0\0\0\0":
        return Signature("linux_raid_member")
    return None


def _luks(head: bytes) -> Signature | None:
    # LUKS1 and LUKS2 on-disk format: magic, version (big endian), the UUID as text at 168, LUKS2's label at 24.
    if head[:6] != b"LUKS\xba\xbe":
        return None
    version = int.from_bytes(head[6:8], "big")
    return Signature("crypto_LUKS", _text(head[168:208]), _text(head[24:72]) if version == 2 else None)


def _lvm(head: bytes) -> Signature | None:
    # lvm2 lib/format_text/layout.h: the label is in one of the first four sectors; the volume's id follows the header.
    for sector in range(4):
        label = head[sector * SECTOR : (sector + 1) * SECTOR]
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            start = int.from_bytes(label[20:24], "little")
            text = label[start : start + 32].decode("ascii", "replace")
            parts = [text[:6], *(text[index : index + 4] for index in range(6, 26, 4)), text[26:32]]
            return Signature("LVM2_member", "-".join(parts))
    return None


def _btrfs(head: bytes) -> Signature | None:
    # fs/btrfs/accessors.h: superblock at 64 KiB, the filesystem's UUID at 32, magic at 64, label at 299.
    block = head[65536 : 65536 + 4096]
    if block[64:72] != b"_BHRfS_M":
        return None
    return Signature("btrfs", _uuid(block[32:48]), _text(block[299:555]))


def _xfs(head: bytes) -> Signature | None:
    # fs/xfs/libxfs/xfs_format.h: struct xfs_dsb.
    if head[:4] != b"XFSB":
        return None
    return Signature("xfs", _uuid(head[32:48]), _text(head[108:120]))


def _ext(head: bytes) -> Signature | None:
    # fs/ext4/ext4.h: struct ext4_super_block at 1 KiB. The three differ in features only.
    block = head[1024:2048]
    if block[56:58] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 92)
    if incompatible & 0x8:
        kind = "jbd"
    elif incompatible & EXT4_INCOMPAT or read_only & EXT4_RO_COMPAT:
        kind = "ext4"
    else:
        kind = "ext3" if compatible & EXT_JOURNAL else "ext2"
    return Signature(kind, _uuid(block[104:120]), _text(block[120:136]))


def _swap(head: bytes) -> Signature | None:
    # include/linux/swap.h: the magic ends the first page, whose size is the machine's; UUID and label at 1036.
    for page in (4096, 8192, 16384, 65536):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return Signature("swap", _uuid(head[1036:1052]), _text(head[1052:1068]))
    return None


def _fat(head: bytes) -> Signature | None:
    # Microsoft FAT specification, section 3: serial number and label are in different places for FAT32.
    for kind, serial, label in ((82, 67, 71), (54, 39, 43)):
        if head[510:512] == b"\x55\xaa" and head[kind : kind + 3] == b"FAT" and head[kind + 5 : kind + 8] == b"   ":
            number = int.from_bytes(head[serial : serial + 4], "little")
            name = head[label : label + 11].decode("ascii", "replace").strip()
            return Signature(
                "vfat", f"{number >> 16:04X}-{number & 0xFFFF:04X}", None if name == "NO NAME" else name or None
            )
    return None


def is_disk(system: System, name: str) -> bool:
    """Whether this entry of /sys/block is a disk of the server, with a medium in it."""
    if NO_DISK.fullmatch(name) or system.text(f"/sys/block/{name}/hidden") == "1":
        return False
    return _integer(system.text(f"/sys/block/{name}/size")) > 0


def find_disks(system: System) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Every disk of the server with what is on it, and the findings about those that cannot be read."""
    mounts = parse_mountinfo(system.text("/proc/self/mountinfo") or "")
    swaps = parse_swaps(system.text("/proc/swaps") or "")
    disks, findings = [], []
    for name in system.names("/sys/block"):
        if is_disk(system, name):
            disk, unreadable = _disk(system, name, mounts, swaps)
            disks.append(disk)
            findings += unreadable
    return disks, findings


def _disk(
    system: System, name: str, mounts: Sequence[Mount], swaps: Sequence[str]
) -> tuple[dict[str, Any], list[Finding]]:
    sysfs = f"/sys/block/{name}"
    disk = _node(system, name, sysfs)
    block_size = _integer(system.text(f"{sysfs}/queue/logical_block_size")) or SECTOR
    partitions = _partitions(system, disk)
    volumes = _volumes(system, [disk, *partitions])
    filesystems = []
    table: str | None = None
    errors: list[tuple[str, OSError]] = []
    for node in (disk, *partitions, *volumes):
        try:
            head, tail = system.ends(node.path, node.size)
        except OSError as error:
            errors.append((node.path, error))
            head, tail = b"", b""
        else:
            if node is disk:
                table = partition_table(head, block_size, disk.size)
        held = signature(head, tail, node.size)
        mountpoints = _mountpoints(system, node, held, mounts)
        if held is not None or mountpoints:
            filesystems.append(_filesystem(system, node, held, mountpoints, mounts))
    mountpoints = [point for filesystem in filesystems for point in filesystem["mountpoints"]]
    record = {
        "name": name,
        "path": disk.path,
        "number": disk.number,
        "size": disk.size,
        "serial": _serial(system, sysfs),
        "wwn": system.text(f"{sysfs}/wwid") or system.text(f"{sysfs}/device/wwid"),
        "model": system.text(f"{sysfs}/device/model"),
        "logical_block_size": block_size,
        "physical_block_size": _integer(system.text(f"{sysfs}/queue/physical_block_size")) or block_size,
        "transport": transport_of(system.real(sysfs)),
        "removable": system.text(f"{sysfs}/removable") == "1",
        "read_only": system.text(f"{sysfs}/ro") == "1",
        "partition_table": table,
        "partitions": [_partition(system, node) for node in partitions],
        "filesystems": filesystems,
        "holders": [_holder(system, node) for node in volumes],
        "swap": [node.path for node in (disk, *partitions, *volumes) if _swapped(system, node, swaps)],
        "mounted": bool(mountpoints),
        "system": "/" in mountpoints,
        "used_bytes": _used(filesystems),
    }
    return record, [unreadable(path, error, mounted=bool(mountpoints)) for path, error in errors]


def _node(system: System, name: str, sysfs: str) -> Node:
    return Node(name, system.text(f"{sysfs}/dev") or "", _integer(system.text(f"{sysfs}/size")) * SECTOR, sysfs)


def _partitions(system: System, disk: Node) -> list[Node]:
    nodes = [
        _node(system, name, f"{disk.sysfs}/{name}")
        for name in system.names(disk.sysfs)
        if system.exists(f"{disk.sysfs}/{name}/partition")
    ]
    return sorted(nodes, key=lambda node: _integer(system.text(f"{node.sysfs}/partition")))


def _volumes(system: System, nodes: Sequence[Node]) -> list[Node]:
    """The volumes made of *nodes*, and those made of these, each once."""
    volumes: list[Node] = []
    pending = list(nodes)
    while pending:
        for name in system.names(f"{pending.pop(0).sysfs}/holders"):
            if name not in [volume.name for volume in volumes]:
                volume = _node(system, name, f"/sys/block/{name}")
                # A RAID may be cut into partitions.
                found = [volume, *_partitions(system, volume)]
                volumes += found
                pending += found
    return volumes


def _partition(system: System, node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "path": node.path,
        "number": _integer(system.text(f"{node.sysfs}/partition")),
        "start": _integer(system.text(f"{node.sysfs}/start")) * SECTOR,
        "size": node.size,
    }


def _holder(system: System, node: Node) -> dict[str, Any]:
    """A volume: who made it is in the UUID that its maker gave it (device-mapper) or in its name (RAID)."""
    maker = (system.text(f"{node.sysfs}/dm/uuid") or "").partition("-")[0].lower()
    if node.name.startswith("md"):
        kind = "md"
    else:
        kind = {"lvm": "lvm", "crypt": "crypt", "mpath": "multipath"}.get(maker, "dm")
    return {
        "name": node.name,
        "path": node.path,
        "type": kind,
        "volume": system.text(f"{node.sysfs}/dm/name"),
        "size": node.size,
    }


def _mountpoints(system: System, node: Node, held: Signature | None, mounts: Sequence[Mount]) -> list[str]:
    """Where the filesystem on *node* is mounted.

    Btrfs makes up device numbers and may tell another of its devices, or a name that is gone: its UUID decides.
    """
    points = []
    for mount in mounts:
        if mount.number == node.number or (
            mount.filesystem == "btrfs"
            and held is not None
            and held.type == "btrfs"
            and (mount.source == node.path or system.btrfs_id(mount.mountpoint) == held.uuid)
        ):
            points.append(mount.mountpoint)
    return list(dict.fromkeys(points))


def _filesystem(
    system: System, node: Node, held: Signature | None, mountpoints: Sequence[str], mounts: Sequence[Mount]
) -> dict[str, Any]:
    if held is None:
        # A type that is not known here, but the kernel knows it.
        held = Signature(next(mount.filesystem for mount in mounts if mount.number == node.number))
    usage = next(filter(None, map(system.usage, mountpoints)), None)
    return {
        "device": node.path,
        "type": held.type,
        "uuid": held.uuid,
        "label": held.label,
        "mountpoints": list(mountpoints),
        "size_bytes": usage[0] if usage else None,
        "used_bytes": usage[0] - usage[1] if usage else None,
        "free_bytes": usage[1] if usage else None,
    }


def _used(filesystems: Sequence[Mapping[str, Any]]) -> int | None:
    known = [filesystem["used_bytes"] for filesystem in filesystems if filesystem["used_bytes"] is not None]
    return sum(known) if known else None


def _swapped(system: System, node: Node, swaps: Sequence[str]) -> bool:
    volume = system.text(f"{node.sysfs}/dm/name")
    return node.path in swaps or (volume is not None and f"/dev/mapper/{volume}" in swaps)


def _serial(system: System, sysfs: str) -> str | None:
    """Virtio and NVMe keep the serial in other places than SCSI, whose own page (SPC-4, 7.8.15) has a header."""
    serial = system.text(f"{sysfs}/serial") or system.text(f"{sysfs}/device/serial")
    page = system.data(f"{sysfs}/device/vpd_pg80") if not serial else None
    if page:
        serial = _text(page[4 : 4 + int.from_bytes(page[2:4], "big")])
    return serial or None


def unreadable(path: str, error: OSError, *, mounted: bool) -> Finding:
    """A device that cannot be read. A disk that nothing is mounted from need not be migrated, and does not block."""
    return Finding(
        "DISK_UNREADABLE",
        "blocker" if mounted else "warning",
        path,
        f"{path} cannot be read: {error.strerror or error}.",
        "Check the disk and the kernel log of the source, or leave this disk out of the mapping.",
        {"errno": error.errno},
    )


def host_findings(
    *,
    root: bool,
    python: Sequence[int],
    memory: Mapping[str, int],
    epoch: float,
    controller_time: float | None,
    disks: Iterable[Mapping[str, Any]],
    unknown_services: Sequence[str] = (),
) -> list[Finding]:
    """What stands in the way of a migration, apart from single disks. Times are seconds since the epoch, UTC."""
    findings = []
    if not root:
        findings.append(
            Finding(
                "NOT_ROOT",
                "blocker",
                "user",
                "The source is not reached as root, and disks cannot be read without.",
                "Connect as root, or set `become: true` for the sources.",
            )
        )
    version = ".".join(map(str, python[:3]))
    if tuple(python[:2]) < MINIMUM_PYTHON:
        findings.append(
            Finding(
                "PYTHON_TOO_OLD",
                "blocker",
                "python",
                f"The source runs Python {version}, and the agent needs {'.'.join(map(str, MINIMUM_PYTHON))} or later.",
                "Install a newer Python beside it and name it in ansible_python_interpreter.",
                {"version": version},
            )
        )
    available = memory.get("available", 0)
    if available < MEMORY_COMFORTABLE:
        findings.append(
            Finding(
                "MEMORY_LOW",
                "blocker" if available < MEMORY_NEEDED else "warning",
                "memory",
                f"Only {available >> 20} MiB of memory are available for the agent, which is locked in memory.",
                "Stop something that can be spared until the migration is over.",
                dict(memory),
            )
        )
    skew = 0.0 if controller_time is None else epoch - controller_time
    if abs(skew) > CLOCK_TOLERANCE:
        findings.append(
            Finding(
                "CLOCK_SKEW",
                "blocker" if abs(skew) > CLOCK_LIMIT else "warning",
                "clock",
                f"The clock of the source is {round(abs(skew))} seconds {'ahead of' if skew > 0 else 'behind'} the"
                " controller's. Certificates are checked by it, and after the cutover the time jumps.",
                "Set the clock of the source, or that of the controller, by NTP.",
                {"source": round(epoch), "skew": round(skew)},
            )
        )
    findings += [
        Finding(
            "SERVICE_UNKNOWN",
            "blocker",
            name,
            f"The source has no service named {name}.",
            "Correct the list of services to stop at the cutover.",
        )
        for name in unknown_services
    ]
    if not any(disk["system"] for disk in disks):
        findings.append(
            Finding(
                "SYSTEM_DISK_NOT_FOUND",
                "blocker",
                "/",
                "The root filesystem is on none of the disks of the source: it may be in memory or on the network.",
                "Migrate only servers that run from a disk of their own.",
            )
        )
    return findings


def unescaped(text: str) -> str:
    """Undo the octal escapes of white space and backslash in /proc."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def _integer(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _uuid(raw: bytes) -> str | None:
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 and any(raw) else None


def _text(raw: bytes) -> str | None:
    return raw.partition(b"\0")[0].decode("utf-8", "replace").strip() or None
