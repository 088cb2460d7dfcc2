# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What virtual machines are made of: a Debian with kernel and boot loader, and a rescue system in RAM.

Both come from bootstraps of the distribution's packages, and are kept in the lab's cache under the hash of their
recipe. Disks are filled from the first, of which there are several releases; the second is a kernel and an initramfs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from lab.baseroot import SUITE, bootstrap, locked
from lab.command import run
from lab.errors import LabError
from lab.mounts import remove_tree, unmount_under

PACKAGES = (
    "dbus",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "grub2-common",
    "ifupdown",
    "iproute2",
    "isc-dhcp-client",
    "kmod",
    "linux-image-amd64",
    "lvm2",
    "nginx-light",
    "openssh-server",
    "procps",
    "python3",
    "python3-xxhash",
    "python3-zstandard",
    "systemd-sysv",
    "udev",
    "xfsprogs",
    "zstd",
)
# Debian 11 has these not: an agent there has SHA-256 and zlib.
LACKING = {"bullseye": ("python3-xxhash", "python3-zstandard")}
# Of the kernel's drivers, what a virtual machine of the lab may have in it: each is read, sent, compared, and packed
# into an initramfs, in every migration.
_DRIVERS = (
    "drivers/acpi", "drivers/ata/ahci.ko", "drivers/ata/ata_generic.ko", "drivers/ata/ata_piix.ko",
    "drivers/ata/libahci.ko", "drivers/ata/libata.ko", "drivers/block/loop.ko", "drivers/block/virtio_blk.ko",
    "drivers/cdrom", "drivers/dax", "drivers/input/evdev.ko", "drivers/input/serio", "drivers/md/dm-*",
    "drivers/net/ethernet/intel/e1000", "drivers/net/ethernet/intel/e1000e", "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko", "drivers/nvdimm", "drivers/pps", "drivers/ptp", "drivers/rtc",
    "drivers/scsi/scsi_common.ko", "drivers/scsi/scsi_mod.ko", "drivers/scsi/sd_mod.ko", "drivers/scsi/sg.ko",
    "drivers/scsi/sr_mod.ko", "drivers/scsi/virtio_scsi.ko", "drivers/virtio", "fs/autofs", "fs/binfmt_misc.ko",
    "fs/configfs", "fs/efivarfs", "fs/ext4", "fs/fat", "fs/fuse", "fs/isofs", "fs/jbd2", "fs/mbcache.ko",
    "fs/nls/nls_ascii.ko", "fs/nls/nls_cp437.ko", "fs/nls/nls_utf8.ko", "fs/xfs", "net/802", "net/core", "net/llc",
    "net/packet",
)  # fmt: skip
# The rest is what no program of the lab's servers opens, and what would be a quarter of all that is copied.
LEFT_OUT = (
    "/usr/lib/udev/hwdb.d/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/usr/lib/x86_64-linux-gnu/libicudata*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/zoneinfo/*",
    *(
        f"{base}/modules/*/kernel/{directory}/*"
        for directory in ("drivers", "fs", "net", "sound")
        for base in ("/lib", "/usr/lib")
    ),
)
# Newer releases compress their modules: x.ko.xz.
BUT_NOT = tuple(
    f"{base}/modules/*/kernel/{path.removesuffix('*')}*"
    if path.endswith((".ko", "*"))
    else f"{base}/modules/*/kernel/{path}/*"
    for path in _DRIVERS
    for base in ("/lib", "/usr/lib")
)
# The rescue system runs the kernel that the distribution makes for clouds: it starts in a third of the time.
RESCUE_KERNEL = "linux-image-cloud-amd64"
# Unpacked beside the system and not installed in it: its own initramfs is not to be made of them.
FETCH_FOR_RESCUE = (
    'mkdir "$1/rescue" && cd "$1/rescue" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && apt-get -qq download '
    f'busybox-static "$(apt-cache depends {RESCUE_KERNEL} | sed -n "s/.*Depends: //p" | head -1)" && '
    "for package in ./*.deb; do dpkg-deb -x $package . && rm $package; done"
)
RESCUE_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_scsi", "sd_mod", "ext4", "xfs", "btrfs", "vfat", "nls_ascii",
    "nls_cp437", "dm_mod", "loop", "crc32c_generic", "button", "evdev", "efivarfs",
)  # fmt: skip
RESCUE_LEAVES_OUT = re.compile(
    r"usr/lib/(modules|grub|gcc|firmware|apt|init|systemd/(?!systemd-udevd|$)|x86_64-linux-gnu/(perl|gconv|libicu))"
    r"|usr/(share/(?!misc/)|include|games|local|src)|usr/bin/perl|usr/s?bin/(grub|apt|dpkg|nginx)|usr/lib/udev/hwdb|etc/ssh/ssh_host"
)
INIT = """\
#!/bin/sh
# Process 1 of the rescue system. A machine without a power button has control-alt-delete, which interrupts it.
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
exec >/dev/console 2>&1 </dev/null
mkdir -p /run/sshd /run/lock
hostname rescue
for module in MODULES; do modprobe -q $module; done
[ ! -d /sys/firmware/efi/efivars ] || mount -t efivarfs efivars /sys/firmware/efi/efivars
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --type=subsystems
udevadm trigger --action=add --type=devices
udevadm settle
ip link set lo up
ip link set eth0 up
busybox udhcpc -q -n -t 30 -T 1 -i eth0 -s /etc/udhcpc.sh
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
/usr/sbin/sshd
python3 /power_button.py &
echo 0 >/proc/sys/kernel/ctrl-alt-del
trap 'sync; busybox poweroff -f' INT
echo "the rescue system is up"
while :; do sleep 3600 & wait $!; done
""".replace("MODULES", " ".join(RESCUE_MODULES))
UDHCPC = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr replace "$ip/$mask" dev "$interface"
ip route replace default via "$router"
"""
POWER_BUTTON = """\
# Turns the rescue system off when its power button is pressed. struct input_event: linux/input.h.
import glob, os, select, struct, subprocess
files = [open(path, "rb", buffering=0) for path in glob.glob("/dev/input/event*")]
while True:
    for file in select.select(files, [], [])[0]:
        _, _, kind, code, value = struct.unpack("llHHi", file.read(24))
        if (kind, code, value) == (1, 116, 1):
            os.sync()
            subprocess.run(["busybox", "poweroff", "-f"], check=True)
"""
MERGE = "/usr/share/mmdebstrap/hooks/merged-usr"
UNMERGED = ("bullseye",)
# An emulated processor needs a minute to compress harder, and saves a second of reading.
INITRAMFS = {"initramfs-tools/conf.d/fast": "COMPRESSLEVEL=1\n", "dracut.conf.d/fast.conf": 'compress="gzip -1"\n'}
SSHD = "PermitRootLogin yes\nPasswordAuthentication yes\nUseDNS no\nUsePAM no\n"


@dataclass(frozen=True)
class Variety:
    """A system that disks are filled with: Debian's ``release``, and the package that makes its initramfs."""

    release: str = SUITE
    generator: str = "initramfs-tools"

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(name for name in PACKAGES if name not in LACKING.get(self.release, ()))


@dataclass(frozen=True)
class GuestImage:
    """The parts: ``root`` is a directory, ``rescue_kernel`` and ``rescue_initramfs`` are files."""

    root: Path
    rescue_kernel: Path
    rescue_initramfs: Path
    key: str


STANDARD = Variety()


def recipe_key(variety: Variety) -> str:
    """Return the name under which the image of this recipe is kept."""
    parts = [*astuple(variety), variety.packages, LEFT_OUT, BUT_NOT, INITRAMFS]
    if variety == STANDARD:
        parts += [FETCH_FOR_RESCUE, RESCUE_MODULES, RESCUE_LEAVES_OUT.pattern, INIT, UDHCPC, POWER_BUTTON, SSHD]
    return hashlib.sha256(json.dumps([*parts, 2]).encode()).hexdigest()[:12]


def build(cache: Path, progress: Callable[[str], None], variety: Variety = STANDARD) -> GuestImage:
    """Return the image, building it when it is not cached; two labs never build it at once.

    The rescue system is always that of the standard variety.
    """
    rescue = cache / f"guest-{recipe_key(STANDARD)}"
    key = recipe_key(variety)
    final = cache / f"guest-{key}"
    if variety != STANDARD:
        build(cache, progress)
    found = GuestImage(final / "root", rescue / "vmlinuz", rescue / "rescue.cpio", key)
    with locked(cache) as lock:
        if final.is_dir():
            return found
        what = "" if variety == STANDARD else f" with {variety.release} and {variety.generator}"
        progress(f"building the virtual machines' image{what}, once for all labs (about a minute)")
        work = cache / "building-guest"
        if work.exists():
            unmount_under(work)
            remove_tree(work)
        work.mkdir(mode=0o700)
        root = work / "root"
        options = [f"--dpkgopt=path-include={pattern}" for pattern in BUT_NOT]
        if variety == STANDARD:
            options.append(f"--customize-hook={FETCH_FOR_RESCUE}")
        packages = [*variety.packages, variety.generator]
        if variety.release not in UNMERGED:
            # Else a program in Perl merges the directories afterwards, and stays.
            packages.append("usr-is-merged")
            options.append(f"--hook-dir={MERGE}")
        bootstrap(root, lock, packages, LEFT_OUT, options=options, suite=variety.release)
        if variety == STANDARD:
            _make_rescue(root, work)
            remove_tree(root / "rescue")
        _finish(root)
        work.rename(final)
    return found


def _finish(root: Path) -> None:
    for path in (root / "etc/machine-id", root / "var/lib/dbus/machine-id", *(root / "etc/ssh").glob("ssh_host_*")):
        path.unlink(missing_ok=True)
    # No name server is reachable, and nothing may be fetched.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("", encoding="ascii")
    for name, text in INITRAMFS.items():
        if (root / "etc" / name).parent.is_dir():
            (root / "etc" / name).write_text(text, encoding="ascii")
    for unit in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
                 "e2scrub_reap.service", "fstrim.timer"):  # fmt: skip
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _make_rescue(root: Path, work: Path) -> None:
    """Make the kernel and the initramfs of the rescue system from ``root`` and the kernel beside it."""
    kernels = list((root / "rescue/boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise LabError(f"{RESCUE_KERNEL} holds {len(kernels)} kernels instead of one", "Look at what apt offers")
    version = kernels[0].name.removeprefix("vmlinuz-")
    shutil.copy(kernels[0], work / "vmlinuz")
    run(["chroot", str(root), "depmod", "-b", "/rescue", version])
    stage = work / "rescue"
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/tmp", "var/lib", "etc/ssh"):
        (stage / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (stage / name).symlink_to(os.readlink(root / name))
    _copy(root, stage, _wanted(root))
    modules = Path("lib/modules") / version
    _copy(root / "rescue", stage, [modules / "modules.builtin", modules / "modules.order"])
    _copy(
        root / "rescue",
        stage,
        [modules / path for path in with_dependencies(root / "rescue" / modules, RESCUE_MODULES)],
    )
    run(["chroot", str(stage), "depmod", version])
    shutil.copy2(root / "rescue/bin/busybox", stage / "usr/bin/busybox")
    _write(stage / "init", INIT, 0o755)
    _write(stage / "etc/udhcpc.sh", UDHCPC, 0o755)
    _write(stage / "power_button.py", POWER_BUTTON, 0o644)
    _write(stage / "etc/ssh/sshd_config", SSHD, 0o644)
    pack(stage, work / "rescue.cpio")
    remove_tree(stage)


def pack(directory: Path, archive: Path) -> None:
    """Append ``directory`` to ``archive``, as an initramfs has it."""
    run(["sh", "-c", 'cd "$1" && find . | sort | cpio --quiet -o -H newc >>"$2"', "sh", str(directory), str(archive)])


def _wanted(root: Path) -> list[Path]:
    found = []
    for top in ("usr", "etc"):
        for directory, folders, files in os.walk(root / top):
            here = Path(directory).relative_to(root)
            folders[:] = [name for name in folders if not RESCUE_LEAVES_OUT.match(f"{here}/{name}/")]
            links = [name for name in folders if (root / here / name).is_symlink()]
            found += [here / name for name in (*files, *links) if not RESCUE_LEAVES_OUT.match(f"{here}/{name}")]
    return found


def with_dependencies(directory: Path, wanted: Iterable[str]) -> list[str]:
    """Return the files of the ``wanted`` modules and of what they need, by modules.dep (depmod(8)) of ``directory``."""
    lines = (directory / "modules.dep").read_text(encoding="ascii").splitlines()
    needs = {path: rest.split() for path, rest in (line.split(":") for line in lines)}
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    chosen = [by_name[name] for name in wanted if name in by_name]
    return sorted({*chosen, *(need for path in chosen for need in needs[path])})


def _copy(source: Path, target: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, place, follow_symlinks=False)


def _write(path: Path, text: str, mode: int) -> None:
    path.write_text(text, encoding="ascii")
    path.chmod(mode)
