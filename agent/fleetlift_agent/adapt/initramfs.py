# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The initramfs of every installed kernel: it must hold the drivers of the target's disks, or nothing boots."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import chroot, cpio
from .finding import Finding
from .kernels import DRIVERS, ESSENTIAL, Kernel, installed
from .names import Names
from .record import Record, copy_attributes
from .situation import Situation
from .tree import Tree

CONCERN = "initramfs"
MODULES = "/etc/initramfs-tools/modules"
POLICY = "/etc/initramfs-tools/conf.d/zz-fleetlift"
RESUME = "/etc/initramfs-tools/conf.d/resume"
DRACUT = "/etc/dracut.conf.d/zz-fleetlift.conf"
SUSE_MODULES = "/etc/sysconfig/kernel"
MODPROBE = "/etc/modprobe.conf"
# What the generators copy into an initramfs: changed here, it has to be made again.
_INSIDE = (
    "/etc/initramfs-tools/",
    "/etc/dracut.conf",
    "/etc/lvm/",
    "/etc/mdadm",
    "/etc/crypttab",
    "/etc/modprobe.conf",
)
_NEW = ".fleetlift"
_MARK = "# The disks and the network of the platform this server was migrated to."


@dataclass(frozen=True)
class Generator:
    """The program that makes the copy's initramfs; ``command`` gives its words for a kernel and an output path."""

    name: str
    command: Callable[[Kernel, str], list[str]]


@dataclass(frozen=True)
class Need:
    """An initramfs that has to be made again, and why."""

    kernel: Kernel
    reason: str


def generator_of(tree: Tree) -> Generator | None:
    """The generator that the copy's own kernel packages would call."""
    mkinitramfs = _program(tree, "mkinitramfs")
    dracut = _program(tree, "dracut")
    mkinitrd = _program(tree, "mkinitrd")
    if dracut and (not mkinitramfs or tree.exists("/etc/kernel/postinst.d/dracut")):
        return Generator(
            "dracut", lambda kernel, out: [dracut, "--force", *_dracut_drivers(kernel), out, kernel.version]
        )
    if mkinitramfs:
        return Generator("initramfs-tools", lambda kernel, out: [mkinitramfs, "-o", out, kernel.version])
    if mkinitrd and tree.exists("/etc/SuSE-release"):
        return Generator(
            "mkinitrd (SUSE)",
            lambda kernel, out: [
                mkinitrd,
                "-k",
                posixpath.basename(kernel.image),
                "-i",
                posixpath.basename(out),
                "-m",
                " ".join(kernel.wanted),
            ],
        )
    if mkinitrd:
        return Generator(
            "mkinitrd",
            lambda kernel, out: [mkinitrd, "-f", *(f"--with={each}" for each in kernel.wanted), out, kernel.version],
        )
    return None


def _dracut_drivers(kernel: Kernel) -> list[str]:
    return ["--add-drivers", " ".join(kernel.wanted)] if kernel.wanted else []


def _program(tree: Tree, name: str) -> str:
    for base in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        if tree.is_file(f"{base}/{name}"):
            return f"{base}/{name}"
    return ""


def plan(tree: Tree, situation: Situation, pending: Sequence[str]) -> tuple[list[Need], list[Finding]]:
    """Which images have to be made again, with the generator's configuration staged for them and for later ones."""
    findings: list[Finding] = []
    kernels = installed(tree)
    if not kernels:
        findings.append(
            Finding(
                "NO_KERNEL",
                "note",
                "kernels",
                "The copy has no kernel with an image in /boot and modules in /lib/modules",
                "Nothing to do if it is no system that boots by itself",
            )
        )
        return [], findings
    text = tree.read(RESUME)
    if text is not None:
        tree.write(CONCERN, RESUME, adapt_resume(text, situation.names))
    lacking: dict[str, str] = {}
    for kernel in kernels:
        findings += _driver_findings(kernel, kernels)
        reason = _lacks(tree, kernel, findings)
        if reason:
            lacking[kernel.version] = reason
    if lacking:
        _configure(tree, generator_of(tree))
    edited = [each.path for each in tree.staged if each.path.startswith(_INSIDE)]
    needs = []
    for kernel in kernels:
        if kernel.initramfs is None and kernel.version not in lacking:
            continue
        if kernel.version in lacking:
            needs.append(Need(kernel, lacking[kernel.version]))
        elif edited:
            needs.append(Need(kernel, f"it holds a copy of {', '.join(edited)}"))
        elif kernel.version in pending:
            needs.append(Need(kernel, "an earlier run was cut off before it was made"))
    return needs, findings


def _driver_findings(kernel: Kernel, kernels: Sequence[Kernel]) -> list[Finding]:
    essential = [driver for driver in kernel.absent if driver in ESSENTIAL]
    if essential:
        only = all(any(driver in ESSENTIAL for driver in each.absent) for each in kernels)
        return [
            Finding(
                "KERNEL_WITHOUT_VIRTIO",
                "blocker" if only else "warning",
                f"kernel {kernel.version}",
                f"This kernel has no {' and no '.join(essential)}, and cannot reach the target's disks",
                "Install a kernel with virtio drivers on the source and replicate again"
                if only
                else "Boot another one, or remove it",
            )
        ]
    if "virtio_net" in kernel.absent:
        return [
            Finding(
                "KERNEL_WITHOUT_VIRTIO_NET",
                "warning",
                f"kernel {kernel.version}",
                "This kernel has no virtio_net, and comes up without a network",
                "Install a kernel with virtio drivers on the source and replicate again",
            )
        ]
    return []


def _lacks(tree: Tree, kernel: Kernel, findings: list[Finding]) -> str:
    """Why the kernel's initramfs has to be made again; empty when it has all drivers."""
    if not kernel.wanted:
        return ""
    if kernel.initramfs is None:
        return f"{' '.join(kernel.wanted)} are modules, and it has no initramfs"
    try:
        missing = kernel.missing_in(_names(tree, kernel.initramfs))
    except cpio.Unreadable as error:
        findings.append(_unreadable(kernel.initramfs, str(error), "note"))
        return f"{kernel.initramfs} cannot be read: {error}"
    return f"it lacks {' '.join(missing)}" if missing else ""


def _names(tree: Tree, path: str) -> set[str]:
    def decompress(program: str, data: bytes) -> Iterator[bytes]:
        try:
            yield from chroot.filtered(tree.root, program, data)
        except FileNotFoundError as error:
            raise cpio.Unreadable(f"{program} is on neither the copy nor the rescue system") from error

    return cpio.names(tree.host(path), decompress)


def _unreadable(path: str, why: str, severity: str) -> Finding:
    return Finding(
        "INITRAMFS_UNREADABLE",
        severity,
        path,
        f"What is in this initramfs cannot be found out: {why}",
        "It is made again; if that does not help, make it on the source with another compression and replicate again",
    )


def _configure(tree: Tree, generator: Generator | None) -> None:
    """Have the generator put the drivers into every image it makes from now on."""
    if generator is None:
        return
    if generator.name == "initramfs-tools":
        tree.write(CONCERN, MODULES, with_modules(tree.read(MODULES) or ""))
        if _policy(tree) == "dep":
            tree.write(CONCERN, POLICY, f"{_MARK}\nMODULES=most\n")
    elif generator.name == "dracut":
        tree.write(CONCERN, DRACUT, f'{_MARK}\nhostonly="no"\nadd_drivers+=" {" ".join(DRIVERS)} "\n')
    elif generator.name == "mkinitrd (SUSE)":
        text = tree.read(SUSE_MODULES)
        if text is not None:
            tree.write(CONCERN, SUSE_MODULES, with_suse_modules(text))
    else:
        tree.write(CONCERN, MODPROBE, with_aliases(tree.read(MODPROBE) or ""))


def with_modules(text: str) -> str:
    """/etc/initramfs-tools/modules (initramfs-tools(7)) with the drivers in it."""
    there = {line.split()[0].replace("-", "_") for line in text.splitlines() if line.strip() and line.strip()[0] != "#"}
    missing = [driver for driver in DRIVERS if driver not in there]
    if not missing:
        return text
    gap = "" if not text or text.endswith("\n") else "\n"
    return text + gap + "\n".join([_MARK, *missing]) + "\n"


def with_suse_modules(text: str) -> str:
    """/etc/sysconfig/kernel of SUSE up to 11 with the drivers in INITRD_MODULES."""

    def add(found: re.Match[str]) -> str:
        words = found[2].split()
        return f'{found[1]}"{" ".join([*words, *(each for each in DRIVERS if each not in words)])}"'

    return re.sub(r'^(INITRD_MODULES=)"([^"]*)"', add, text, flags=re.MULTILINE)


def with_aliases(text: str) -> str:
    """modprobe.conf of releases before dracut: the disk adapter and the first NIC."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*alias\s+(?:scsi_hostadapter\S*|eth0)\s", line)]
    return "\n".join([*kept, "alias scsi_hostadapter virtio_blk", "alias eth0 virtio_net"]) + "\n"


def adapt_resume(text: str, names: Names) -> str:
    """Where to look for a suspended system: its volume by UUID, and nowhere when it did not come along."""

    def rewrite(found: re.Match[str]) -> str:
        meaning = names.meaning(found[2])
        if meaning.absent:
            return f"{found[1]}none"
        if meaning.stable or meaning.volume is None:
            return found[0]
        return found[1] + (names.stable_name(meaning.volume) or found[2])

    return re.sub(r"^(RESUME=)(?!none|auto)(\S+)", rewrite, text, flags=re.MULTILINE)


def _policy(tree: Tree) -> str:
    """MODULES= as initramfs-tools reads it: the last file that sets it wins (initramfs.conf(5))."""
    found = "most"
    for path in ("/etc/initramfs-tools/initramfs.conf", *tree.glob("/etc/initramfs-tools/conf.d/*")):
        for value in re.findall(r"^\s*MODULES=[\"']?(\w+)", tree.read(path) or "", re.MULTILINE):
            found = value
    return found


def rebuild(tree: Tree, need: Need, record: Record, timeout: float) -> Finding | None:
    """Make one image beside the old one, look into it, and only then put it in its place. A finding is a failure."""
    kernel = need.kernel
    generator = generator_of(tree)
    if generator is None:
        return Finding(
            "INITRAMFS_TOOL_MISSING",
            "blocker",
            f"kernel {kernel.version}",
            f"Its initramfs has to be made again ({need.reason}), and the copy has no program that can: neither "
            "initramfs-tools nor dracut nor mkinitrd",
            "Install one of them on the source and replicate again",
        )
    path = kernel.initramfs or f"/boot/initrd.img-{kernel.version}"
    new = f"{path}{_NEW}"
    place, beside = tree.host(path), tree.host(new)
    beside.unlink(missing_ok=True)
    command = generator.command(kernel, new)
    output = chroot.run(tree.root, command, timeout)
    if output.status != 0 or not beside.is_file():
        free = _free(place.parent)
        beside.unlink(missing_ok=True)
        return Finding(
            "INITRAMFS_FAILED",
            "blocker",
            f"kernel {kernel.version}",
            f"{generator.name} could not make the initramfs: "
            + ("its time was over" if output.status is None else f"it ended with status {output.status}"),
            "Read what it said in the evidence; the old initramfs is untouched. Often there is no room left in /boot",
            {"command": command, "output": output.text, "bytes_free": free},
        )
    try:
        missing = kernel.missing_in(_names(tree, new))
    except cpio.Unreadable as error:
        beside.unlink()
        return _unreadable(path, str(error), "blocker")
    if missing:
        beside.unlink()
        return Finding(
            "INITRAMFS_INCOMPLETE",
            "blocker",
            f"kernel {kernel.version}",
            f"{generator.name} made an initramfs without {' '.join(missing)}",
            "Read what it said in the evidence, correct its configuration on the source and replicate again",
            {"command": command, "output": output.text},
        )
    _put(place, beside, lambda: record.remember(tree.real(path), CONCERN))
    return None


def _put(place: Path, beside: Path, remember: Callable[[], None]) -> None:
    """Replace the image at once and durably; the old one is kept."""
    if place.exists():
        copy_attributes(place, beside)
    remember()
    for path in (beside, beside.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.replace(beside, place)
    descriptor = os.open(place.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
