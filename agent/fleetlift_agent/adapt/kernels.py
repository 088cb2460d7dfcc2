# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels that are installed on a copy, and where each of them has the drivers of the target."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from .tree import Tree

# A disk cannot be reached without the first two; the others belong to what a CVM may have.
ESSENTIAL = ("virtio_pci", "virtio_blk")
DRIVERS = (*ESSENTIAL, "virtio_scsi", "virtio_net")

_IMAGES = ("vmlinuz-{0}", "vmlinux-{0}", "Image-{0}", "zImage-{0}", "{1}/{0}/linux")
_INITRAMFS = ("initrd.img-{0}", "initramfs-{0}.img", "initrd-{0}", "initrd-{0}.img", "{1}/{0}/initrd")
_BOOT = ("/boot", "/efi", "/boot/efi")
_SUFFIX = re.compile(r"\.ko(?:\.(?:gz|xz|zst|bz2))?\Z")


@dataclass(frozen=True)
class Kernel:
    """An installed kernel. ``initramfs`` is the path of its initramfs, None when it has none.

    ``builtin`` and ``modules`` are names with underscores; a module's value is what it depends on.
    """

    version: str
    image: str
    initramfs: str | None
    builtin: frozenset[str]
    modules: dict[str, tuple[str, ...]]

    @property
    def absent(self) -> tuple[str, ...]:
        """The drivers that this kernel does not have at all."""
        return tuple(driver for driver in DRIVERS if driver not in self.builtin and driver not in self.modules)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The drivers that have to be in its initramfs."""
        return tuple(driver for driver in DRIVERS if driver in self.modules and driver not in self.builtin)

    @property
    def needed(self) -> frozenset[str]:
        """The wanted drivers with everything that they depend on."""
        pending, found = list(self.wanted), set()
        while pending:
            name = pending.pop()
            if name not in found and name not in self.builtin:
                found.add(name)
                pending += self.modules.get(name, ())
        return frozenset(found)

    def missing_in(self, names: set[str]) -> list[str]:
        """What of ``needed`` an initramfs with these paths lacks."""
        there = {module_name(name) for name in names if _SUFFIX.search(name)}
        return sorted(self.needed - there)


def installed(tree: Tree) -> list[Kernel]:
    """Every kernel that has an image and modules, oldest name first."""
    machine = (tree.read("/etc/machine-id") or "").strip()
    found = []
    for directory in tree.glob("/lib/modules/*") or tree.glob("/usr/lib/modules/*"):
        version = posixpath.basename(directory)
        image = _first(tree, _IMAGES, version, machine)
        dependencies = tree.read(f"{directory}/modules.dep")
        if image is None or dependencies is None:
            continue
        found.append(
            Kernel(
                version,
                image,
                _first(tree, _INITRAMFS, version, machine),
                frozenset(module_name(line) for line in (tree.read(f"{directory}/modules.builtin") or "").split()),
                parse_dependencies(dependencies),
            )
        )
    return found


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep (depmod(8)): each module's name and the names of the modules it needs."""
    found = {}
    for line in text.splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            found[module_name(path)] = tuple(module_name(each) for each in needs.split())
    return found


def module_name(path: str) -> str:
    """The name that modprobe knows a module's file by."""
    return _SUFFIX.sub("", posixpath.basename(path.strip())).replace("-", "_")


def _first(tree: Tree, patterns: tuple[str, ...], version: str, machine: str) -> str | None:
    for base in _BOOT:
        for pattern in patterns:
            if "{1}" in pattern and not machine:
                continue
            path = f"{base}/{pattern.format(version, machine)}"
            if tree.is_file(path):
                return tree.real(path)
    return None
