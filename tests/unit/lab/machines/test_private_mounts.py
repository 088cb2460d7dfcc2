# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the lab mounts to fill and to compare disks is nobody else's."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import loopdisk
from lab.command import run
from lab.diskbuild import make_filesystem
from lab.namespaces import in_private_mounts

from .conftest import eventually

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    loopdisk.create_sparse(file, 64 << 20)
    make_filesystem(file, "ext4")
    return file


def namespace_of(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/mnt")


def copy_of_the_mounts() -> subprocess.Popen[bytes]:
    """A process in a mount namespace that is a copy of this thread's as it is now."""
    keeper = subprocess.Popen(["unshare", "--mount", "sleep", "infinity"])
    eventually(lambda: namespace_of(str(keeper.pid)) != namespace_of("thread-self"), "a namespace of its own")
    return keeper


def test_a_namespace_that_somebody_makes_meanwhile_does_not_keep_the_disk_mounted(disk: Path) -> None:
    with ThreadPoolExecutor(max_workers=1) as somebody:
        # The thread is there before the disk is mounted, in the host's namespace.
        somebody.submit(os.getpid).result()

        def fill() -> subprocess.Popen[bytes]:
            with loopdisk.mounted(disk, disk.with_name("mnt")) as root:
                (root / "content").write_text("content")
                return somebody.submit(copy_of_the_mounts).result()

        keeper = in_private_mounts(fill)
        try:
            assert loopdisk.attached_under(disk) == []
        finally:
            keeper.kill()
            keeper.wait()


def test_it_does_not_keep_somebody_else_s_disk_mounted(disk: Path) -> None:
    mountpoint = disk.with_name("mnt")
    with ThreadPoolExecutor(max_workers=1) as somebody:
        somebody.submit(os.getpid).result()
        with loopdisk.mounted(disk, mountpoint):
            device = loopdisk.attached_under(disk)[0].path

            def meanwhile() -> None:
                somebody.submit(loopdisk.unmount, mountpoint).result()
                loopdisk.wait_released(device, timeout=20)
                somebody.submit(run, ["mount", device, str(mountpoint)]).result()

            in_private_mounts(meanwhile)


def test_what_fails_inside_fails_outside() -> None:
    def fail() -> None:
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        in_private_mounts(fail)
