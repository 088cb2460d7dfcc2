# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small server on a real disk: partition table, filesystem, kernel, and a generator that makes its initramfs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from block_devices import run

AGENT = Path(__file__).resolve().parents[4] / "agent"
MIB = 1 << 20
VERSION = "6.1.0-9-amd64"
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net")
FSTAB = "/dev/sda1 / ext4 defaults 0 1\n/dev/sdq1 /backup ext4 defaults 0 2\n"
INTERFACES = "auto lo\niface lo inet loopback\n\nauto ens192\niface ens192 inet static\n    address 10.1.1.5/24\n"
# As initramfs-tools does it, of what is in the copy; where the test wants it to, it waits half-way.
GENERATOR = """\
#!/bin/sh
set -e
out=$2
echo half-made >"$out"
if [ -e /wait ]; then echo reached >/reached; sync; while [ -e /wait ]; do sleep 0.1; done; fi
cd /
find lib/modules/VERSION -name '*.ko' | cpio -o -H newc >"$out" 2>/dev/null
""".replace("VERSION", VERSION)
SIGNATURES = {"mbr": ("dos", "83"), "gpt": ("gpt", "0FC63DAF-8483-4772-8E79-3D69D8477DE4")}


@dataclass
class Server:
    """The disk's ``image``, and where its root filesystem begins in it, in bytes."""

    image: Path
    start: int
    size: int
    filesystem: str

    def adapt(self, *, before: str = "true", **request: Any) -> dict[str, Any]:
        """Run the agent on the disk as the landing does, after the command *before*; its answer."""
        return answer_of(self.run(before=before, **request))

    def run(self, *, before: str = "true", **request: Any) -> subprocess.Popen[bytes]:
        """The agent, just started, in a mount namespace of its own."""
        disk = {"id": "d0", "path": str(self.image), "device": "/dev/sda"}
        order = {"disks": [disk], **request, "options": {"firmware": "bios", **request.get("options", {})}}
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh"]
            + [sys.executable, "-m", "fleetlift_agent", "adapt"],
            cwd=AGENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        process.stdin = None
        return process

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The root filesystem, for the time of the block."""
        root = self.image.with_suffix(".mnt")
        root.mkdir(exist_ok=True)
        options = f"loop,offset={self.start}"
        run("mount", "-o", options, self.image, root)
        try:
            yield root
        finally:
            run("umount", root)

    def files(self) -> dict[str, bytes]:
        """Every file but the adaptation's own record."""
        with self.mounted() as root:
            return {
                str(path.relative_to(root)): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file() and not path.is_symlink() and "var/lib/fleetlift" not in str(path)
            }

    def moved_to(self, image: Path, size: int = 0) -> Server:
        """The same content on another disk, of *size* bytes if it is larger."""
        run("cp", "--sparse=always", self.image, image)
        with image.open("r+b") as file:
            file.truncate(max(size, image.stat().st_size))
        return Server(image, self.start, self.size, self.filesystem)


def answer_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the agent answered."""
    said, errors = process.communicate(timeout=300)
    assert said, errors.decode()
    answer: dict[str, Any] = json.loads(said)
    return answer


def make(image: Path, *, filesystem: str = "ext4", table: str = "mbr", size: int = 320 * MIB, swap: int = 0) -> Server:
    """A server on a new disk; ``swap`` bytes at its end are a swap partition."""
    with image.open("wb") as file:
        file.truncate(size)
    label, kind = SIGNATURES[table]
    room = f",size={(size - 2 * MIB - swap) // 512}" if swap or table == "gpt" else ""
    lines = [f"label: {label}", f"start=2048{room},type={kind}", *(["type=82"] if swap else [])]
    script = "\n".join(lines) + "\n"
    subprocess.run(["sfdisk", "--quiet", str(image)], input=script.encode(), check=True)
    with image.open("r+b") as file:
        # Some boot code.
        file.write(b"\xeb\x63GRUB".ljust(440, b"\x90"))
    (part, *_others) = json.loads(run("sfdisk", "--json", image))["partitiontable"]["partitions"]
    server = Server(image, part["start"] * 512, part["size"] * 512, filesystem)
    device = run("losetup", "--find", "--show", "--offset", str(server.start), "--sizelimit", str(server.size), image)
    try:
        run(f"mkfs.{filesystem}", "-q", *([] if filesystem == "ext4" else ["-f"]), device)
    finally:
        run("losetup", "--detach", device)
    if swap:
        end = part["start"] + part["size"]
        device = run("losetup", "--find", "--show", "--offset", str(end * 512), image)
        try:
            run("mkswap", device)
        finally:
            run("losetup", "--detach", device)
    with server.mounted() as root:
        fill(root)
    return server


def fill(root: Path) -> None:
    """The system: busybox for everything, and a generator in it."""
    busybox = shutil.which("busybox") or "/bin/busybox"
    for name in ("bin", "etc/network", "sbin", "usr/sbin", "boot", "dev", "proc", "sys", "run", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "find", "cpio", "echo", "sleep", "sync"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/os-release").write_text('PRETTY_NAME="A small server"\n')
    (root / "etc/fstab").write_text(FSTAB)
    (root / "etc/network/interfaces").write_text(INTERFACES)
    (root / "etc/initramfs-tools").mkdir()
    modules = root / "lib/modules" / VERSION
    modules.mkdir(parents=True)
    for name in (*DRIVERS, "ata_piix"):
        (modules / f"{name}.ko").write_bytes(os.urandom(1000))
    (modules / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in (*DRIVERS, "ata_piix")))
    (modules / "modules.builtin").write_text("")
    (root / f"boot/vmlinuz-{VERSION}").write_bytes(b"kernel")
    old = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], input=b"ata_piix.ko", cwd=modules, stdout=subprocess.PIPE, check=True
    )
    (root / f"boot/initrd.img-{VERSION}").write_bytes(old.stdout)
    generator = root / "usr/sbin/mkinitramfs"
    generator.write_text(GENERATOR)
    generator.chmod(0o755)
