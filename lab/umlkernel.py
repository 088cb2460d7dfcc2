# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel of machines without hardware: Debian's User-mode Linux, its modules, and what stands in for firmware."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.baseroot import locked
from lab.command import run
from lab.errors import LabError
from lab.guestimage import GuestImage, pack, with_dependencies
from lab.mounts import remove_tree

KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
# Loaded before the disk's own system starts: that has the modules of its own kernel only.
WANTED = ("virtio_blk", "dm_mod", "vfat", "nls_ascii", "nls_cp437", "loop", "autofs4", "fuse", "ipv6", "binfmt_misc")
BOOT = "boot_disk"
# No firmware, no boot loader and no initramfs of the disk's own: the first system that is found there is started.
SCRIPT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run
exec >/dev/console 2>&1
for module in MODULES; do modprobe -q $module; done
lvm vgchange -ay --sysinit --config 'activation { udev_sync=0 udev_rules=0 }'
for device in /dev/mapper/*-* /dev/vd[a-z] /dev/vd[a-z][0-9]*; do
  mount -o ro $device /mnt 2>/dev/null || continue
  if [ -e /mnt/etc/fstab ] && [ -e /mnt/usr/lib/systemd/systemd ]; then
    echo "booting the system on $device"
    exec switch_root /mnt /usr/lib/systemd/systemd
  fi
  umount /mnt
done
echo "no disk holds a system"
busybox poweroff -f
""".replace("MODULES", " ".join(WANTED))


@dataclass(frozen=True)
class UmlKernel:
    """``program`` is the kernel; ``supplement`` is unpacked over the rescue system, and has BOOT in it."""

    program: Path
    supplement: Path


def build(cache: Path, image: GuestImage, progress: Callable[[str], None]) -> UmlKernel:
    """Return the kernel with its supplement to the rescue system of ``image``, made when it is not cached."""
    versions = sorted(MODULES.iterdir()) if MODULES.is_dir() else []
    if not versions:
        raise LabError(f"there are no modules in {MODULES}", "Install the package user-mode-linux")
    version = versions[-1].name
    key = hashlib.sha256(repr((version, SCRIPT, image.key)).encode()).hexdigest()[:12]
    final = cache / f"uml-{key}"
    with locked(cache):
        if not final.is_dir():
            progress("packing the modules of User-mode Linux")
            work = cache / "building-uml"
            if work.exists():
                remove_tree(work)
            stage = work / "stage"
            modules = stage / "usr/lib/modules" / version
            for name in ("modules.builtin", "modules.order", *with_dependencies(versions[-1], WANTED)):
                (modules / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(versions[-1] / name, modules / name)
            _depmod(image.root, stage / "usr", version)
            (stage / BOOT).write_text(SCRIPT, encoding="ascii")
            (stage / BOOT).chmod(0o755)
            pack(stage, work / "supplement.cpio")
            remove_tree(stage)
            work.rename(final)
    return UmlKernel(KERNEL, final / "supplement.cpio")


def _depmod(root: Path, base: Path, version: str) -> None:
    """Run the image's depmod on ``base``, which only has to be seen for as long as it runs."""
    script = 'mount --bind "$1" "$0/mnt" && exec chroot "$0" depmod -b /mnt "$2"'
    run(["unshare", "--mount", "sh", "-c", script, str(root), str(base), version])
