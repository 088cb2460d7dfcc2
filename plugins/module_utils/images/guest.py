# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The system on the disk in an image: what it is, and whether it would come up on virtio hardware."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from ..source_facts import parse_os_release
from .disk import Disk
from .filesystems import (
    PACKAGES,
    Damaged,
    FilesystemPath,
    Node,
    damage_told,
    logical_volumes,
    open_filesystem,
    window,
)

_ROOT_KINDS = ("ext4", "xfs", "btrfs")
_SYSTEM_MOUNTS = ("/boot", "/boot/efi", "/efi", "/usr", "/var", "/opt", "/etc", "/usr/local", "/var/lib")
_SUBVOLUMES = ("", "@/.snapshots/1/snapshot", "@", "root", "@rootfs")
# e_machine: include/uapi/linux/elf-em.h; the names are those of the ImportImage API.
_MACHINES = {62: "x86_64", 3: "i386", 183: "arm_64"}
_PROGRAMS = ("/bin/sh", "/usr/bin/env", "/sbin/init")
_RELEASES = (
    ("/etc/centos-release", re.compile(r"(?P<name>CentOS)\D*(?P<version>[\d.]+)")),
    ("/etc/redhat-release", re.compile(r"(?P<name>Red Hat|Fedora|Rocky|AlmaLinux)\D*(?P<version>[\d.]+)")),
    ("/etc/SuSE-release", re.compile(r"(?P<name>SUSE|openSUSE)\D*(?P<version>[\d.]+)")),
    ("/etc/debian_version", re.compile(r"(?P<name>)(?P<version>\d[\d.]*)")),
)
_IDS = {
    "CentOS": "centos", "Red Hat": "rhel", "Fedora": "fedora", "Rocky": "rocky", "AlmaLinux": "almalinux",
    "SUSE": "sles", "openSUSE": "opensuse", "": "debian",
}  # fmt: skip


@dataclass
class Guest:
    """What was found; ``virtio`` and ``cloud_init`` are None where that is not known. ``unread`` says what and why."""

    root: dict[str, Any] | None = None
    system: dict[str, Any] | None = None
    kernels: list[dict[str, Any]] = field(default_factory=list)
    virtio: bool | None = None
    cloud_init: bool | None = None
    filesystems: list[dict[str, Any]] = field(default_factory=list)
    unread: list[dict[str, str]] = field(default_factory=list)

    def left_out(self, what: str, why: str) -> None:
        """Note that *what* could not be read."""
        self.unread.append({"what": what, "why": why})


def examine(disk: Disk, found: Any) -> Guest:
    """Look at the system on *disk*, whose volumes are *found*. Never raises for what is on it."""
    guest = Guest()
    try:
        volumes = _Volumes(disk, found, guest)
        tree = volumes.system()
        if tree is not None:
            _describe(tree, guest)
    except ImportError:
        guest.left_out("the files", f"the Python packages {PACKAGES} are not installed where the image is")
    except Damaged as error:
        guest.left_out("the files", str(error))
    return guest


class _Volumes:
    """The volumes of the disk as filesystems."""

    def __init__(self, disk: Disk, found: Any, guest: Guest) -> None:
        self._guest = guest
        self._found = found
        self._streams: dict[Any, IO[bytes]] = {
            volume: window(disk, volume.start, volume.size) for volume in found.volumes if volume.content.kind
        }
        self._inner = self._logical()

    def _logical(self) -> list[Any]:
        """The logical volumes, as the agent's DiskVolume."""
        from fleetlift_agent.adapt.volumes import DiskVolume, identify
        from fleetlift_agent.usedblocks.volume import Volume

        physical = [volume for volume in self._streams if volume.content.kind == "LVM"]
        if not physical:
            return []
        found = []
        try:
            for name, stream, size in logical_volumes([self._streams[volume] for volume in physical]):
                with damage_told():
                    content = identify(Volume(_StreamDevice(stream), 0, size))
                volume = DiskVolume(f"lvm {name}", 0, 0, size, "", "", content)
                self._streams[volume] = stream
                found.append(volume)
        except Damaged as error:
            self._guest.left_out("the logical volumes", str(error))
        return found

    def system(self) -> Any:
        """The agent's Tree of the system with all that its fstab mounts; None when there is not exactly one."""
        from fleetlift_agent.adapt.names import Names

        names = Names((self._found,), self._inner)
        self._guest.filesystems = [
            {"volume": volume.name, "size": volume.size, "holds": volume.content.kind, "uuid": volume.content.uuid,
             "label": volume.content.label}
            for volume in names.volumes
            if volume.content.kind
        ]  # fmt: skip
        roots = []
        for volume in names.volumes:
            if volume.content.kind in _ROOT_KINDS:
                node = self._root_of(volume)
                if node is not None:
                    roots.append((volume, node))
        if len(roots) != 1:
            self._no_root(names, roots)
            return None
        volume, node = roots[0]
        self._guest.root = {
            "volume": volume.name,
            "filesystem": volume.content.kind,
            "uuid": volume.content.uuid,
        }
        mounts = {"/": node}
        self._add_mounts(mounts, names, volume)
        return _tree(mounts)

    def _root_of(self, volume: Any) -> Node | None:
        """The root directory of the system on *volume*; None when there is none."""
        try:
            top = open_filesystem(volume.content.kind, self._streams[volume])
            for subvolume in _SUBVOLUMES if volume.content.kind == "btrfs" else ("",):
                node = _below(top, subvolume)
                if node is not None and _is_system(_tree({"/": node})):
                    return node
        except Damaged as error:
            self._guest.left_out(f"the files on {volume.name} ({volume.content.kind})", str(error))
        return None

    def _no_root(self, names: Any, roots: list[Any]) -> None:
        if roots:
            systems = ", ".join(volume.name for volume, _node in roots)
            self._guest.left_out("the system", f"{len(roots)} volumes hold one: {systems}")
            return
        layers = sorted({volume.content.kind for volume in names.volumes} & {"LVM", "LUKS", "RAID", "bcache"})
        if layers and not self._inner:
            self._guest.left_out("the system", f"it may be behind {', '.join(layers)}, which is not opened here")

    def _add_mounts(self, mounts: dict[str, Node], names: Any, root: Any) -> None:
        from fleetlift_agent.adapt.copy import mapped_volume

        table = [line.split() for line in (_tree(mounts).read("/etc/fstab") or "").splitlines()]
        for fields in (each for each in table if len(each) > 2 and each[1] in _SYSTEM_MOUNTS):
            volume = names.meaning(fields[0]).volume or mapped_volume(names, fields[0])
            if volume is None or volume not in self._streams or volume == root:
                continue
            try:
                mounts[fields[1]] = open_filesystem(volume.content.kind, self._streams[volume])
            except KeyError:
                self._guest.left_out(f"{fields[1]} on {volume.name}", f"{volume.content.kind} is not read here")
            except Damaged as error:
                self._guest.left_out(f"{fields[1]} on {volume.name}", str(error))


class _StreamDevice:
    """A stream as the agent's Device."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the stream. Raises OSError beyond its end."""
        self._stream.seek(offset)
        data = self._stream.read(length)
        if len(data) < length:
            raise OSError(0, f"the volume ends at byte {offset + len(data)}")
        return data


def _below(node: Node, path: str) -> Node | None:
    for part in path.split("/") if path else ():
        with damage_told():
            child = node.children().get(part)
        if child is None:
            return None
        node = child
    return node


def _tree(mounts: dict[str, Node]) -> Any:
    from fleetlift_agent.adapt.tree import Tree

    # It has what of a path the tree uses to look.
    return Tree(cast(Path, FilesystemPath(mounts)))


def _is_system(tree: Any) -> bool:
    releases = ("/etc/os-release", "/usr/lib/os-release", "/etc/redhat-release", "/etc/fstab")
    return any(tree.exists(path) for path in releases) and any(tree.exists(path) for path in ("/sbin", "/usr"))


def _describe(tree: Any, guest: Guest) -> None:
    """Fill in what the files say."""
    guest.system = system_of(tree)
    guest.cloud_init = any(
        tree.exists(path) for path in ("/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/bin/cloud-init")
    )
    _look_at_kernels(tree, guest)


def system_of(tree: Any) -> dict[str, Any]:
    """Distribution, version and architecture."""
    text = tree.read("/etc/os-release") or tree.read("/usr/lib/os-release")
    release = parse_os_release(text) if text else {"id": "", "version": "", "pretty": ""}
    found = {
        "id": release["id"],
        "version": release["version"],
        "name": release["pretty"],
        "architecture": architecture_of(tree),
        "hostname": (tree.read("/etc/hostname") or "").strip()[:253],
    }
    if not found["id"]:
        for path, pattern in _RELEASES:
            match = pattern.search(tree.read(path) or "")
            if match:
                found.update(id=_IDS[match["name"]], version=match["version"])
                found["name"] = f"{match['name'] or 'Debian'} {match['version']}"
                break
    return found


def architecture_of(tree: Any) -> str:
    """By the machine that a program of the system is for; empty when it is none that can be imported."""
    for path in _PROGRAMS:
        real = tree.real(path)
        if tree.is_file(real):
            with tree.host(real).open("rb") as program:
                start = program.read(20)
            if start[:4] == b"\x7fELF":
                (machine,) = struct.unpack(">H" if start[5] == 2 else "<H", start[18:20])
                return _MACHINES.get(machine, f"machine {machine}")
    return ""


def _look_at_kernels(tree: Any, guest: Guest) -> None:
    from fleetlift_agent.adapt import kernels

    verdicts = []
    for kernel in kernels.installed(tree):
        missing: list[str] | None = [driver for driver in kernel.absent if driver in kernels.ESSENTIAL]
        absent = bool(missing)
        if not missing and kernel.wanted:
            missing = _missing(tree, kernel, guest)
        guest.kernels.append(
            {
                "version": kernel.version,
                "initramfs": kernel.initramfs or "",
                "virtio": None if missing is None else not missing,
                "missing": missing or [],
                "no_driver": absent,
            }
        )
        verdicts.append(None if missing is None else not missing)
    if verdicts:
        guest.virtio = False if False in verdicts else None if None in verdicts else True


def _missing(tree: Any, kernel: Any, guest: Guest) -> list[str] | None:
    """What the kernel's initramfs lacks; None when that cannot be found out."""
    from fleetlift_agent.adapt import cpio

    if kernel.initramfs is None:
        return sorted(kernel.needed)
    try:
        return list(kernel.missing_in(initramfs_names(tree, kernel.initramfs)))
    except (cpio.Unreadable, Damaged) as error:
        guest.left_out(kernel.initramfs, str(error))
        return None


def initramfs_names(tree: Any, path: str) -> set[str]:
    """The paths in an initramfs of the image. Raises cpio.Unreadable, Damaged."""
    from fleetlift_agent.adapt import chroot, cpio

    with tempfile.TemporaryDirectory(prefix="fleetlift-image-") as scratch, tree.host(path).open("rb") as content:
        copy = Path(scratch, "initramfs")
        with copy.open("wb") as file:
            while piece := content.read(1 << 20):
                file.write(piece)

        def decompress(program: str, data: bytes) -> Iterator[bytes]:
            try:
                # This machine's own program: nothing of the image is ever run.
                yield from chroot.filtered(Path(scratch), program, data)
            except FileNotFoundError as error:
                raise cpio.Unreadable(f"{program} is not installed where the image is") from error

        return set(cpio.names(copy, decompress))
