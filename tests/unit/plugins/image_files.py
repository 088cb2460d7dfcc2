# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small real disks, made without root: a partition table, boot code, a filesystem with a system, in any format."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Iterable
from pathlib import Path

MIB = 1 << 20
VIRTIO = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net")
OS_RELEASE = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
# An ELF header's first bytes: 64 bits, little endian, x86_64.
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(44)
KERNEL = "6.1.0-test"
FORMATS = {
    "qcow2": ("qcow2", "qcow2", ()),
    "compressed qcow2": ("qcow2", "qcow2", ("-c",)),
    "dynamic vhd": ("vpc", "vhd", ()),
    "fixed vhd": ("vpc", "vhd", ("-o", "subformat=fixed,force_size=on")),
    "sparse vmdk": ("vmdk", "vmdk", ()),
    "stream vmdk": ("vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
    "flat vmdk": ("vmdk", "vmdk", ("-o", "subformat=monolithicFlat")),
    "split vmdk": ("vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    "vdi": ("vdi", "vdi", ()),
    "vhdx": ("vhdx", "vhdx", ()),
    "raw": ("raw", "raw", ()),
}


def run(*words: object) -> str:
    """The output of a program that has to succeed."""
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def archive(names: Iterable[str]) -> bytes:
    """A newc archive with empty files."""
    packed = b""
    for name in [*names, "TRAILER!!!"]:
        fields = [0, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        packed += head + bytes(-len(head) % 4)
    return packed


def system(root: Path, *, in_initramfs: Iterable[str] = VIRTIO, cloud_init: bool = True) -> Path:
    """A root directory with a kernel, its initramfs and what tells the distribution."""
    modules = root / "usr/lib/modules" / KERNEL
    for directory in (modules, root / "boot", root / "etc", root / "usr/bin", root / "sbin"):
        directory.mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "bin").symlink_to("usr/bin")
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "usr/lib/os-release").write_text(OS_RELEASE)
    (root / "etc/hostname").write_text("web1\n")
    (root / "etc/fstab").write_text("/dev/sda1 / ext4 defaults 0 1\n")
    (root / "usr/bin/dash").write_bytes(ELF)
    (root / "usr/bin/sh").symlink_to("dash")
    if cloud_init:
        (root / "usr/bin/cloud-init").write_text("#!/bin/sh\n")
    (root / f"boot/vmlinuz-{KERNEL}").write_bytes(b"kernel")
    (modules / "modules.builtin").write_text("")
    (modules / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for name in VIRTIO))
    inside = [f"usr/lib/modules/{KERNEL}/kernel/{name}.ko" for name in in_initramfs]
    (root / f"boot/initrd.img-{KERNEL}").write_bytes(gzip.compress(archive(["init", *inside])))
    return root


def filesystem(file: Path, kind: str, root: Path, size: int) -> None:
    """A filesystem of *size* bytes that holds *root*; nothing is mounted for it."""
    with file.open("wb") as stream:
        stream.truncate(size)
    if kind == "ext4":
        run("mkfs.ext4", "-q", "-F", "-d", root, file)
    elif kind == "btrfs":
        run("mkfs.btrfs", "-q", "--rootdir", root, file)
    else:
        protocol = file.with_suffix(".proto")
        protocol.write_text("\n".join(["/", "0 0", f"d--755 0 0\n{_protocol(root)}$"]) + "\n")
        run("mkfs.xfs", "-q", "-f", "-p", protocol, file)


def _protocol(directory: Path) -> str:
    """The content of a directory as mkfs.xfs takes it."""
    lines = []
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            lines.append(f"{path.name} l--777 0 0 {path.readlink()}")
        elif path.is_dir():
            lines.append(f"{path.name} d--755 0 0\n{_protocol(path)}$")
        else:
            lines.append(f"{path.name} ---644 0 0 {path}")
    return "".join(f"{line}\n" for line in lines)


def disk(
    file: Path,
    *volumes: Path,
    table: str = "dos",
    kind: str = "linux",
    boot_code: bool = True,
    esp: bool = False,
) -> Path:
    """A disk with *volumes* in its partitions, and perhaps an empty EFI system partition before them."""
    lines = [f"label: {table}"]
    places = []
    start = 2048
    if esp:
        lines.append(f"start={start},size=4096,type=U")
        start += 4096
    for volume in volumes:
        size = volume.stat().st_size // 512
        lines.append(f"start={start},size={size},type={'L' if kind == 'linux' else 'V'}")
        places.append(start)
        start += size
    with file.open("wb") as stream:
        stream.truncate((start + 2048) * 512)
    text = "\n".join(lines) + "\n"
    subprocess.run(["sfdisk", "-q", str(file)], input=text, text=True, check=True, capture_output=True)
    for volume, place in zip(volumes, places):
        run("dd", f"if={volume}", f"of={file}", "bs=1M", f"seek={place // 2048}", "conv=notrunc,sparse", "status=none")
    if boot_code:
        with file.open("r+b") as stream:
            stream.write(b"\xeb\x63\x90GRUB")
    return file


def converted(source: Path, directory: Path, name: str) -> Path:
    """The raw disk *source* in one of FORMATS."""
    driver, extension, options = FORMATS[name]
    target = directory / f"{name.replace(' ', '-')}.{extension}"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *options, source, target)
    return target
