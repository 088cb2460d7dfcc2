# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks that firmware boots from: partition table, boot loader, volumes and the system on them.

The host's kernel need not know partition tables, device mapper or FAT: every volume is reached through a loop device
over its part of the disk, and the boot loader is put in place the way its own installer does.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import diskbuild, loopdisk
from lab.command import run
from lab.description import Source, Virtual
from lab.guestimage import GuestImage
from lab.loopdisk import LoopDevice
from lab.workloads import seed

SECTOR = 512
MIB = 1024 * 1024
ALIGNED = MIB // SECTOR
BOOT_SIZE = 300 * MIB
ESP_SIZE = 64 * MIB
GROUP = "vg0"
# Where the first extent of a physical volume lies (pvcreate(8), --dataalignment).
LVM_DATA = MIB
# Metadata only, no device mapper, and no other device than the one that is given.
LVM_CONFIGURATION = (
    'devices {{ use_devicesfile=0 obtain_device_list_from_udev=0 filter=["a|^{device}$|","r|.*|"] '
    'global_filter=["a|^{device}$|","r|.*|"] }} backup {{ backup=0 archive=0 }} '
    "activation {{ udev_sync=0 udev_rules=0 }}"
)
GRUB_MODULES = (
    "part_msdos", "part_gpt", "ext2", "xfs", "lvm", "normal", "linux", "search", "search_fs_uuid", "configfile",
    "echo", "serial", "terminal", "test", "ls", "cat", "reboot",
)  # fmt: skip
TYPES = {
    "mbr": {"linux": "83", "lvm": "8e"},
    "gpt": {
        "linux": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        "lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        "bios": "21686148-6449-6E6F-744E-656564454649",
        "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    },
}
INTERFACES = """\
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback
"""
# What the NIC is called follows from its place: in a slot of the old chipset, on the new one's bus.
INTERFACE = """
allow-hotplug {nic}
iface {nic} inet static
    address {address}/24
    gateway {gateway}
"""
NIC_NAMES = {"qemu": ("ens3", "enp0s3"), "uml": ("eth0",)}
GRUB_DEFAULTS = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL="serial"
"""
GRUB_MENU = """\
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
menuentry 'Debian GNU/Linux' {{
\tsearch --no-floppy --fs-uuid --set=root {boot_uuid}
\tlinux\t{prefix}/vmlinuz-{version} root={root} ro console=tty0 console=ttyS0,115200 quiet
\tinitrd\t{prefix}/initrd.img-{version}
}}
"""
EARLY = "search --no-floppy --fs-uuid --set=root {boot_uuid}\nset prefix=($root){prefix}/grub\n"


@dataclass(frozen=True)
class Part:
    """A partition; ``role`` is bios, esp, boot, root or data, ``start`` and ``size`` are bytes."""

    number: int
    role: str
    start: int
    size: int


@dataclass(frozen=True)
class Volume:
    """Where a filesystem lies in its disk's file: ``start`` and ``size`` in bytes."""

    file: Path
    start: int
    size: int


def partition(file: Path, virtual: Virtual, roles: list[str]) -> dict[str, Part]:
    """Write the partition table for ``roles`` in this order, the last of which gets what is left."""
    sizes = {"bios": MIB, "esp": ESP_SIZE, "boot": BOOT_SIZE}
    kinds = {"bios": "bios", "esp": "esp", "root": "lvm" if virtual.lvm else "linux"}
    lines = [f"label: {'dos' if virtual.table == 'mbr' else 'gpt'}"]
    start = ALIGNED
    for role in roles:
        size = f",size={sizes[role] // SECTOR}" if role != roles[-1] else ""
        lines.append(f"start={start}{size},type={TYPES[virtual.table][kinds.get(role, 'linux')]}")
        start += sizes.get(role, 0) // SECTOR
    run(["sfdisk", "--quiet", str(file)], stdin="\n".join(lines) + "\n")
    table = json.loads(run(["sfdisk", "--json", str(file)]))["partitiontable"]["partitions"]
    return {
        role: Part(number, role, entry["start"] * SECTOR, entry["size"] * SECTOR)
        for number, (role, entry) in enumerate(zip(roles, table, strict=True), start=1)
    }


@contextmanager
def looped(volume: Volume) -> Iterator[str]:
    """A loop device over ``volume``."""
    place = ["--offset", str(volume.start), "--sizelimit", str(volume.size)]
    path = run(["losetup", "--find", "--show", *place, str(volume.file)]).strip()
    try:
        yield path
    finally:
        loopdisk.detach(LoopDevice(path, str(volume.file)))


def make_group(image: GuestImage, part: Volume) -> Volume:
    """Make the partition a volume group with one volume, ``root``, and return where that lies."""
    with looped(part) as device:
        configuration = LVM_CONFIGURATION.format(device=device)
        for program, *words in (
            ("pvcreate", device),
            ("vgcreate", GROUP, device),
            ("lvcreate", "-an", "-Zn", "-Wn", "-n", "root", "-l", "100%FREE", GROUP),
        ):
            inside(image.root, ["lvm", program, "--driverloaded", "n", "--config", configuration, *words])
    extent = 4 * MIB
    return Volume(part.file, part.start + LVM_DATA, (part.size - LVM_DATA) // extent * extent)


def inside(root: Path, command: list[str]) -> None:
    """Run a program of the system below ``root``, with devices and processes to look at for as long as it runs."""
    script = 'mount --bind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    run(["unshare", "--mount", "sh", "-c", script, str(root), *command])


def build(source: Source, virtual: Virtual, directory: Path, image: GuestImage, gateway: str, key: str) -> list[Path]:
    """Make the disks of ``source`` as raw files in ``directory``; ``key`` is the public key that is let in."""
    files = [directory / f"base-{number}.img" for number in range(len(source.disks))]
    for file, disk in zip(files, source.disks, strict=True):
        loopdisk.create_sparse(file, disk.size)
    roles = [*({"uefi": ["esp"], "bios": ["bios"]}[virtual.firmware] if virtual.table == "gpt" else [])]
    roles += ["boot"] if virtual.separate_boot else []
    parts = partition(files[0], virtual, [*roles, "root"])
    volumes = {"/": Volume(files[0], parts["root"].start, parts["root"].size)}
    if virtual.lvm:
        volumes["/"] = make_group(image, volumes["/"])
    if "boot" in parts:
        volumes["/boot"] = Volume(files[0], parts["boot"].start, parts["boot"].size)
    for file, disk in zip(files[1:], source.disks[1:], strict=True):
        part = partition(file, virtual, ["data"])["data"]
        volumes[disk.mount] = Volume(file, part.start, part.size)
    kinds = {disk.mount: disk.filesystem for disk in source.disks} | {"/boot": "ext4"}
    uuids = {}
    with tempfile.TemporaryDirectory(dir=directory) as scratch, ExitStack() as stack:
        root = Path(scratch) / "root"
        root.mkdir()
        for mount, volume in sorted(volumes.items()):
            device = stack.enter_context(looped(volume))
            diskbuild.make_filesystem(Path(device), kinds[mount])
            uuids[mount] = loopdisk.probe(device).uuid
            target = root / mount.lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            run(["mount", device, str(target)])
            stack.callback(loopdisk.unmount, target)
        run(["cp", "-a", f"{image.root}/.", str(root)])
        diskbuild.give_identity(root, source.name, key)
        boot = "/boot" if "/boot" in uuids else "/"
        prefix = "" if boot == "/boot" else "/boot"
        _configure(root, source, virtual, uuids, prefix, gateway)
        seed(source.workload, root)
        if virtual.initramfs == "dep":
            _make_initramfs(root, virtual, kinds["/"])
        boot_part = parts["boot" if boot == "/boot" else "root"]
        if virtual.firmware == "uefi":
            early = EARLY.format(boot_uuid=uuids[boot], prefix=prefix)
            _install_uefi(files[0], parts["esp"], root, Path(scratch), early)
        else:
            _install_bios(files[0], parts.get("bios"), root, Path(scratch), virtual.table, boot_part.number, prefix)
    return files


def _configure(root: Path, source: Source, virtual: Virtual, uuids: dict[str, str], prefix: str, gateway: str) -> None:
    """Write the files of a server that was installed on this hardware: names of disks and NICs as they are there."""
    mapped = f"/dev/mapper/{GROUP}-root"
    lines = [f"{mapped if virtual.lvm else 'UUID=' + uuids['/']} / {source.disks[0].filesystem} defaults 0 1"]
    if "/boot" in uuids:
        lines.append(f"UUID={uuids['/boot']} /boot ext4 defaults 0 2")
    lines += [f"/dev/{disk.device}1 {disk.mount} {disk.filesystem} defaults 0 2" for disk in source.disks[1:]]
    if virtual.firmware == "uefi":
        (root / "boot/efi").mkdir(parents=True, exist_ok=True)
        lines.append("UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1")
    lines.append("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0")
    (root / "etc/fstab").write_text("\n".join(lines) + "\n", encoding="ascii")
    stanzas = [INTERFACE.format(nic=nic, address=source.address, gateway=gateway) for nic in NIC_NAMES[virtual.kind]]
    (root / "etc/network/interfaces").write_text(INTERFACES + "".join(stanzas), encoding="ascii")
    if virtual.kind == "uml":
        # The power button of a machine without hardware is control-alt-delete.
        (root / "etc/systemd/system/ctrl-alt-del.target").symlink_to("/lib/systemd/system/poweroff.target")
    (root / "etc/default/grub").write_text(GRUB_DEFAULTS, encoding="ascii")
    (root / "boot/grub").mkdir(exist_ok=True)
    menu = GRUB_MENU.format(
        boot_uuid=uuids.get("/boot", uuids["/"]),
        prefix=prefix,
        version=kernel_version(root),
        root=mapped if virtual.lvm else f"UUID={uuids['/']}",
    )
    (root / "boot/grub/grub.cfg").write_text(menu, encoding="utf-8")


def kernel_version(root: Path) -> str:
    """Return the version of the one kernel."""
    (image,) = (root / "boot").glob("vmlinuz-*")
    return image.name.removeprefix("vmlinuz-")


def _make_initramfs(root: Path, virtual: Virtual, filesystem: str) -> None:
    """Make the initramfs that MODULES=dep makes on this hardware, which this host does not have."""
    drivers = ["ahci" if virtual.bus == "ahci" else "ata_piix", "sd_mod", filesystem]
    if virtual.generator == "dracut":
        version = kernel_version(root)
        words = ["--force", "--no-hostonly", "--drivers", " ".join([*drivers, *(["dm_mod"] if virtual.lvm else [])])]
        # Beside those it takes what it finds for virtual machines.
        words += ["--omit-drivers", "virtio.* nd_virtio"]
        inside(root, ["dracut", *words, f"/boot/initrd.img-{version}", version])
        (root / "etc/dracut.conf.d/hostonly.conf").write_text('hostonly="yes"\n', encoding="ascii")
        return
    configuration = root / "etc/initramfs-tools"
    with tempfile.TemporaryDirectory(dir=root / "tmp") as scratch:
        run(["cp", "-a", f"{configuration}/.", scratch])
        Path(scratch, "initramfs.conf").write_text("MODULES=list\nBUSYBOX=auto\nCOMPRESS=zstd\n", encoding="ascii")
        Path(scratch, "modules").write_text("\n".join(drivers) + "\n", encoding="ascii")
        version = kernel_version(root)
        place = f"/tmp/{Path(scratch).name}"
        inside(root, ["mkinitramfs", "-d", place, "-o", f"/boot/initrd.img-{version}", version])
    (configuration / "conf.d/driver-policy").write_text("MODULES=dep\n", encoding="ascii")


def _grub_image(root: Path, scratch: Path, words: list[str]) -> bytes:
    """Return an image that the system's own grub-mkimage makes."""
    with tempfile.TemporaryDirectory(dir=root / "tmp") as temporary:
        for path in scratch.glob("*.cfg"):
            (Path(temporary) / path.name).write_bytes(path.read_bytes())
        at = f"/tmp/{Path(temporary).name}"
        run(["chroot", str(root), "grub-mkimage", "-o", f"{at}/image", *(word.format(at=at) for word in words)])
        return (Path(temporary) / "image").read_bytes()


def _install_bios(
    file: Path, bios: Part | None, root: Path, scratch: Path, table: str, number: int, prefix: str
) -> None:
    """Write GRUB's boot code as grub-bios-setup does: boot.img knows where the core begins, its block list the rest."""
    name = f"(hd0,{'msdos' if table == 'mbr' else 'gpt'}{number}){prefix}/grub"
    core = bytearray(_grub_image(root, scratch, ["-O", "i386-pc", "-p", name, "biosdisk", *GRUB_MODULES]))
    boot = bytearray((root / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    start = 1 if bios is None else bios.start // SECTOR
    struct.pack_into("<Q", boot, 0x5C, start)
    # No check of the drive number, as grub-bios-setup does it for hard disks.
    boot[0x66:0x68] = b"\x90\x90"
    struct.pack_into("<QH", core, 0x1F4, start + 1, (len(core) + SECTOR - 1) // SECTOR - 1)
    with file.open("r+b") as stream:
        stream.write(boot[:440])
        stream.seek(start * SECTOR)
        stream.write(core)


def _install_uefi(file: Path, esp: Part, root: Path, scratch: Path, early: str) -> None:
    """Put GRUB where the distribution's entry points and where firmware without an entry looks."""
    (scratch / "early.cfg").write_text(early, encoding="ascii")
    words = ["-O", "x86_64-efi", "-p", "/boot/grub", "-c", "{at}/early.cfg", *GRUB_MODULES, "efi_gop"]
    loader = scratch / "loader.efi"
    loader.write_bytes(_grub_image(root, scratch, words))
    system = scratch / "esp.img"
    loopdisk.create_sparse(system, esp.size)
    run(["mkfs.vfat", "-i", "ABCD1234", str(system)])
    run(["mmd", "-i", str(system), "::/EFI", "::/EFI/debian", "::/EFI/BOOT"])
    run(["mcopy", "-i", str(system), str(loader), "::/EFI/debian/grubx64.efi"])
    run(["mcopy", "-i", str(system), str(loader), "::/EFI/BOOT/BOOTX64.EFI"])
    with file.open("r+b") as stream, system.open("rb") as filesystem:
        stream.seek(esp.start)
        stream.write(filesystem.read())
