# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine's own /dev, /sys and the parts of /proc that tell of disks.

The kernel is shared with the host, so what it would show is the host's. A machine sees a /dev with
its own disks only, and a /sys written down here from the same facts (sysfs paths: Documentation/ABI
and Documentation/block of the kernel).
"""

from __future__ import annotations

import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import namespaces as ns

CHARACTER_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# A Unix 98 pseudo-terminal slave (Documentation/admin-guide/devices.txt).
PTS_MAJOR = 136
PTMX = (5, 2)


@dataclass(frozen=True)
class Disk:
    """A disk as the machine sees it; ``number`` is the device number, ``size`` in bytes."""

    name: str
    number: int
    size: int
    serial: str
    filesystem: str
    uuid: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Disk:
        return cls(**values)

    @property
    def virtio(self) -> bool:
        """Whether this is a paravirtual disk."""
        return self.name.startswith("vd")

    @property
    def number_text(self) -> str:
        """The device number as the kernel writes it."""
        return f"{os.major(self.number)}:{os.minor(self.number)}"

    @property
    def by_id(self) -> str:
        """The name under /dev/disk/by-id, as udev's rules make it."""
        return f"virtio-{self.serial[:20]}" if self.virtio else f"ata-LAB_DISK_{self.serial}"


def device_rules(disks: list[Disk]) -> list[str]:
    """Return the machine's entries for devices.allow (Documentation/admin-guide/cgroup-v1/devices.rst)."""
    pairs = [*CHARACTER_DEVICES.values(), PTMX]
    return [
        *(f"c {major}:{minor} rwm" for major, minor in pairs),
        f"c {PTS_MAJOR}:* rw",
        *(disk_rule(disk.number) for disk in disks),
    ]


def disk_rule(number: int) -> str:
    """Return the devices.allow entry for one disk."""
    return f"b {os.major(number)}:{os.minor(number)} rwm"


def _node(path: str, mode: int, number: int) -> None:
    os.mknod(path, mode, number)
    os.chmod(path, stat.S_IMODE(mode))


def build_dev(disks: list[Disk]) -> None:
    """Mount a /dev with the machine's own nodes over the one in sight."""
    ns.mount("udev", "/dev", "tmpfs", ns.MS_NOSUID | ns.MS_STRICTATIME, "mode=755,size=1m")
    for name, (major, minor) in CHARACTER_DEVICES.items():
        _node(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm", "disk", "disk/by-id", "disk/by-uuid"):
        os.mkdir(f"/dev/{name}")
    ns.mount("devpts", "/dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    ns.mount("tmpfs", "/dev/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")
    for disk in disks:
        add_disk_node(disk)


def add_disk_node(disk: Disk) -> None:
    """Add one disk to /dev."""
    _node(f"/dev/{disk.name}", stat.S_IFBLK | 0o660, disk.number)
    os.symlink(f"../../{disk.name}", f"/dev/disk/by-id/{disk.by_id}")
    link = f"/dev/disk/by-uuid/{disk.uuid}"
    if disk.uuid and not os.path.lexists(link):
        os.symlink(f"../../{disk.name}", link)


def remove_disk_node(disk: Disk) -> None:
    """Take one disk out of /dev."""
    for link in (f"/dev/disk/by-id/{disk.by_id}", f"/dev/disk/by-uuid/{disk.uuid}"):
        if os.path.islink(link) and os.path.basename(os.readlink(link)) == disk.name:
            os.unlink(link)
    os.unlink(f"/dev/{disk.name}")


def sysfs_files(disk: Disk) -> dict[str, str]:
    """Return the attributes of a disk's directory in /sys/block."""
    files = {
        "alignment_offset": "0",
        "capability": "0",
        "dev": disk.number_text,
        "discard_alignment": "0",
        "ext_range": "256",
        "hidden": "0",
        "range": "16",
        "removable": "0",
        "ro": "0",
        "size": str(disk.size // 512),
        "stat": " ".join(["0"] * 17),
        "uevent": f"MAJOR={os.major(disk.number)}\nMINOR={os.minor(disk.number)}\nDEVNAME={disk.name}\nDEVTYPE=disk",
        "queue/discard_granularity": "4096",
        "queue/discard_max_bytes": "4294966784",
        "queue/discard_zeroes_data": "0",
        "queue/hw_sector_size": "512",
        "queue/logical_block_size": "512",
        "queue/max_sectors_kb": "1280",
        "queue/minimum_io_size": "512",
        "queue/nr_requests": "128",
        "queue/optimal_io_size": "0",
        "queue/physical_block_size": "512",
        "queue/read_ahead_kb": "128",
        "queue/rotational": "1",
        "queue/scheduler": "[none]",
        "queue/write_cache": "write back",
    }
    if disk.virtio:
        return {**files, "serial": disk.serial, "cache_type": "write back", "device/vendor": "0x1af4"}
    return {
        **files,
        "device/serial": disk.serial,
        "device/model": "LAB DISK        ",
        "device/vendor": "ATA     ",
        "device/rev": "1.0 ",
        "device/type": "0",
        "device/state": "running",
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def add_disk_entry(sys: Path, disk: Disk) -> None:
    """Add one disk to /sys."""
    directory = sys / "block" / disk.name
    for name, text in sysfs_files(disk).items():
        _write(directory / name, text)
    for name in ("holders", "slaves"):
        (directory / name).mkdir()
    _link(directory / "subsystem", "../../class/block")
    _link(sys / "dev" / "block" / disk.number_text, f"../../block/{disk.name}")
    _link(sys / "class" / "block" / disk.name, f"../../block/{disk.name}")


def remove_disk_entry(sys: Path, disk: Disk) -> None:
    """Take one disk out of /sys."""
    for path in (sys / "dev" / "block" / disk.number_text, sys / "class" / "block" / disk.name):
        path.unlink()
    for parent, directories, files in os.walk(sys / "block" / disk.name, topdown=False):
        for name in (*files, *(d for d in directories if (Path(parent) / d).is_symlink())):
            (Path(parent) / name).unlink()
        Path(parent).rmdir()


def build_sys(sys: Path, disks: list[Disk], vendor: str, product: str) -> None:
    """Mount a /sys on ``sys`` with the machine's own disks, its network interfaces and its firmware's words."""
    ns.mount("sysfs", str(sys), "tmpfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC, "mode=555,size=4m")
    for name in ("block", "dev/block", "dev/char", "class/block", "class/net", "devices/virtual/net", "kernel", "lab"):
        (sys / name).mkdir(parents=True)
    for disk in disks:
        add_disk_entry(sys, disk)
    dmi = {"sys_vendor": vendor, "product_name": product, "product_uuid": str(uuid.uuid4()), "bios_vendor": vendor}
    for name, text in dmi.items():
        _write(sys / "class" / "dmi" / "id" / name, text)
    # Both directories of the real one show the interfaces of the network namespace it was mounted in.
    real = sys / "lab"
    ns.mount("sysfs", str(real), "sysfs", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC | ns.MS_RDONLY)
    for name in ("class/net", "devices/virtual/net"):
        ns.mount(str(real / name), str(sys / name), None, ns.MS_BIND)
    ns.unmount(str(real), ns.MNT_DETACH)


def seal_sys(sys: Path) -> None:
    """Make /sys read-only for everyone inside."""
    flags = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("sysfs", str(sys), None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | flags)


def unseal_sys(sys: Path) -> None:
    """Make /sys writable for the platform, to add or remove a disk."""
    ns.mount("sysfs", str(sys), None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)


def mask_proc(root: Path, disks: list[Disk]) -> None:
    """Show the machine's own boot and disks in /proc, and guard what belongs to the host's kernel."""
    texts = {
        "cmdline": f"BOOT_IMAGE=/boot/vmlinuz root=UUID={disks[0].uuid if disks else ''} ro quiet",
        "partitions": "major minor  #blocks  name\n\n"
        + "\n".join(f"{os.major(d.number):4} {os.minor(d.number):8} {d.size // 1024:10} {d.name}" for d in disks),
        "diskstats": "\n".join(
            f"{os.major(d.number):4} {os.minor(d.number):7} {d.name} {' '.join(['0'] * 17)}" for d in disks
        ),
        "swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority",
        "sys/kernel/random/boot_id": str(uuid.uuid4()),
    }
    proc, store = root / "proc", root / "sys" / "lab"
    ns.mount(str(proc / "sys"), str(proc / "sys"), None, ns.MS_BIND)
    ns.mount(str(proc / "sys" / "net"), str(proc / "sys" / "net"), None, ns.MS_BIND)
    for name, text in texts.items():
        source = store / name.rpartition("/")[2]
        _write(source, text)
        ns.mount(str(source), str(proc / name), None, ns.MS_BIND)
    guarded = [name for name in ("sysrq-trigger", "irq", "bus") if (proc / name).exists()]
    for name in guarded:
        ns.mount(str(proc / name), str(proc / name), None, ns.MS_BIND)
    flags = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    for name in (*texts, *guarded, "sys"):
        ns.mount("proc", str(proc / name), None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | flags)
