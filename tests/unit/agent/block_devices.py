# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real loop devices, a private mount namespace and a small /sys, /dev and /proc around them, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


def run(*command: str | Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout.strip()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether *condition* comes true within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def loop_device(image: Path, size: int, *options: str) -> Iterator[Path]:
    """A loop device over a new sparse file of *size* bytes."""
    with image.open("wb") as file:
        file.truncate(size)
    device = run("losetup", *options, "--find", "--show", image)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)
        image.unlink()


@dataclass(frozen=True)
class MountNamespace:
    """A process that keeps a mount namespace alive; its mounts are reached below ``root``."""

    pid: int

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    @property
    def mountinfo(self) -> Path:
        return Path(f"/proc/{self.pid}/mountinfo")

    def run(self, *command: str | Path) -> str:
        return run("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--", *command)


@contextlib.contextmanager
def mount_namespace() -> Iterator[MountNamespace]:
    """A mount namespace of its own, with a tmpfs at /mnt; everything in it goes when it ends."""
    keeper = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "infinity"])
    try:
        own = os.readlink("/proc/self/ns/mnt")

        def separate() -> bool:
            # Not before the exec: until then the mounts of the test are still its own.
            return os.readlink(f"/proc/{keeper.pid}/ns/mnt") != own and "sleep" in os.readlink(
                f"/proc/{keeper.pid}/exe"
            )

        assert eventually(separate)
        namespace = MountNamespace(keeper.pid)
        namespace.run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
        yield namespace
    finally:
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()


@dataclass(frozen=True)
class HostTree:
    """A /sys, /dev and /proc with only the disks that a test puts there."""

    path: Path

    @property
    def sys(self) -> Path:
        return self.path / "sys"

    @property
    def dev(self) -> Path:
        return self.path / "dev"

    @property
    def proc(self) -> Path:
        return self.path / "proc"

    @classmethod
    def create(cls, path: Path, mountinfo: str = "", swaps: str = "Filename Type Size Used Priority\n") -> HostTree:
        tree = cls(path)
        for directory in ("sys/block", "sys/dev/block", "dev/disk/by-id", "proc/self"):
            (path / directory).mkdir(parents=True)
        (tree.proc / "self/mountinfo").write_text(mountinfo)
        (tree.proc / "swaps").write_text(swaps)
        return tree

    def add_disk(self, name: str, device: Path, serial: str, *, link: bool = True, node: bool = True) -> Path:
        """Show the real block device *device* as the disk *name*; return its directory in /sys."""
        number = device.stat().st_rdev
        block = self.sys / "block" / name
        block.mkdir()
        (block / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (block / "serial").write_text(f"{serial}\n")
        (block / "holders").mkdir()
        (self.sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(block)
        if node:
            os.mknod(self.dev / name, 0o600 | stat.S_IFBLK, number)
        if link:
            (self.dev / "disk/by-id" / f"virtio-{serial}").symlink_to(f"../../{name}")
        return block

    def add_partition(self, disk: str, name: str, device: Path) -> None:
        """Show the real block device *device* as a partition of *disk*."""
        number = device.stat().st_rdev
        block = self.sys / "block" / disk / name
        block.mkdir()
        (block / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (block / "partition").write_text("1\n")
        (self.sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(block)
        os.mknod(self.dev / name, 0o600 | stat.S_IFBLK, number)
