# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make and fill the disks of sources and instances, from outside, before they are first switched on."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lab import loopdisk
from lab.command import run
from lab.description import Source, SourceDisk
from lab.loopdisk import mounted
from lab.machines.init import LIGHT
from lab.workloads import seed

# Nothing may rely on a new cloud disk being blank: the first bytes are garbage, as on a reused one.
GARBAGE = 4 * 1024 * 1024
STOCK_HOSTNAME = "stock"


@dataclass(frozen=True)
class DiskFile:
    """A source's disk and the file that holds its bytes."""

    disk: SourceDisk
    file: Path


def make_filesystem(file: Path, filesystem: str) -> None:
    """Make an empty filesystem in ``file``, whose bytes are all zero."""
    commands = {
        # The file is new: nothing has to be zeroed, now or lazily by a mounted filesystem's kernel thread.
        "ext4": ["mkfs.ext4", "-q", "-F", "-E", "assume_storage_prezeroed=1"],
        "xfs": ["mkfs.xfs", "-q", "-f"],
        "btrfs": ["mkfs.btrfs", "-q", "-f"],
    }
    run([*commands[filesystem], str(file)])


def filesystem_uuid(file: Path) -> str:
    """Return the UUID of the filesystem in ``file``."""
    return loopdisk.probe(str(file)).uuid


def build_source(source: Source, directory: Path, base_root: Path, authorized_key: str) -> list[DiskFile]:
    """Make the disks of ``source`` in ``directory``: base root, identity, fstab, workload."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = [DiskFile(disk, directory / f"{disk.serial}.img") for disk in source.disks]
    for item in files:
        loopdisk.create_sparse(item.file, item.disk.size)
        make_filesystem(item.file, item.disk.filesystem)
    root = directory / "mnt"
    with ExitStack() as stack:
        for item in files:
            target = root / item.disk.mount.lstrip("/")
            stack.enter_context(mounted(item.file, target))
            if item.disk.mount == "/" and source.light:
                copy_without_usr(base_root, root)
            elif item.disk.mount == "/":
                run(["cp", "-a", f"{base_root}/.", str(root)])
            else:
                # A mount point's own attributes are the mounted filesystem's.
                below = base_root / item.disk.mount.lstrip("/")
                if below.exists():
                    run(["cp", "-a", f"{below}/.", str(target)])
        give_identity(root, source.name, authorized_key)
        lines = [
            f"UUID={filesystem_uuid(item.file)} {item.disk.mount} {item.disk.filesystem} defaults 0 0" for item in files
        ]
        (root / "etc/fstab").write_text("\n".join(lines) + "\n", encoding="ascii")
        seed(source.workload, root)
    root.rmdir()
    return files


def copy_without_usr(base_root: Path, root: Path) -> None:
    """Copy what a light machine has of its own."""
    own = [str(path) for path in sorted(base_root.iterdir()) if path.name != "usr"]
    run(["cp", "-a", *own, str(root)])
    (root / "usr").mkdir(mode=0o755)
    (root / LIGHT).touch()


def give_identity(root: Path, name: str, authorized_key: str) -> None:
    """Write what makes this server differ from every other one."""
    (root / "etc/hostname").write_text(f"{name}\n", encoding="ascii")
    (root / "etc/hosts").write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n", encoding="ascii")
    (root / "etc/machine-id").write_text(secrets.token_hex(16) + "\n", encoding="ascii")
    for kind in ("ed25519", "ecdsa"):
        key = root / f"etc/ssh/ssh_host_{kind}_key"
        run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"root@{name}", "-f", str(key)])
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    keys = ssh / "authorized_keys"
    keys.write_text(authorized_key, encoding="ascii")
    keys.chmod(0o600)


def create_cloud_disk(file: Path, size: int) -> None:
    """Make a cloud disk of ``size`` bytes: sparse, but for the garbage at its start."""
    loopdisk.create_sparse(file, size)
    with file.open("r+b") as stream:
        stream.write(os.urandom(GARBAGE))


def build_stock(file: Path, size: int, base_root: Path, mountpoint: Path, password: str | None) -> None:
    """Put the cloud's stock image, a minimal Debian, on a system disk."""
    with file.open("r+b") as stream:
        stream.truncate(0)
        stream.truncate(size)
    make_filesystem(file, "ext4")
    with mounted(file, mountpoint) as root:
        run(["cp", "-a", f"{base_root}/.", str(root)])
        give_identity(root, STOCK_HOSTNAME, "")
        if password is not None:
            run(["chroot", str(root), "chpasswd"], stdin=f"root:{password}\n")
            (root / "etc/ssh/sshd_config.d/login.conf").write_text("PermitRootLogin yes\n", encoding="ascii")
        (root / "etc/fstab").write_text(f"UUID={filesystem_uuid(file)} / ext4 defaults 0 0\n", encoding="ascii")
    mountpoint.rmdir()
