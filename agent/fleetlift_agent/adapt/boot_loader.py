# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot loader for the firmware in use: what a block copy brings along is kept, what is missing is put in place."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from .finding import Finding
from .situation import Situation
from .tree import Tree
from .volumes import CopyDisk

CONCERN = "boot_loader"
DEVICE_MAPS = ("/boot/grub/device.map", "/boot/grub2/device.map")
ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef")
BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"
# Where firmware looks without an entry of its own (UEFI 2.10, 3.5.1.1); those entries stay in the old machine.
FALLBACK = ("EFI", "BOOT", "BOOTX64.EFI")
_LOADERS = ("shimx64.efi", "shim.efi", "grubx64.efi", "systemd-bootx64.efi", "elilo.efi", "grub.efi")
# Beside a shim: what it loads, and what it starts to enrol keys.
_COMPANIONS = ("grubx64.efi", "grub.efi", "mmx64.efi", "MokManager.efi")
_LEGACY = ("/etc/lilo.conf",)


def adapt(tree: Tree, situation: Situation, disks: Sequence[CopyDisk], boot_sector: bytes) -> list[Finding]:
    """*boot_sector* is the first sector of the first disk."""
    for path in DEVICE_MAPS:
        text = tree.read(path)
        if text is not None:
            tree.write(CONCERN, path, adapt_device_map(text))
    system = disks[0]
    if not system.table:
        return [
            Finding(
                "NO_PARTITION_TABLE",
                "note",
                f"disk {system.id}",
                "The first disk has no partition table, so no firmware boots from it",
                "Nothing to do if the machine gets its kernel in another way",
            )
        ]
    findings = []
    for path in _LEGACY:
        if tree.exists(path):
            findings.append(
                Finding(
                    "BOOT_LOADER_LILO",
                    "warning",
                    path,
                    "LILO keeps the places of the kernel's blocks; they are not renewed here",
                    "Run lilo on the source after its last kernel update and replicate again, or change to GRUB",
                )
            )
    if situation.firmware == "uefi":
        return findings + _adapt_uefi(tree, disks)
    return findings + _check_bios(system, boot_sector)


def adapt_device_map(text: str) -> str:
    """GRUB's device.map: the first disk is /dev/vda, the second /dev/vdb and so on."""

    def rewrite(found: re.Match[str]) -> str:
        return f"{found[1]}/dev/vd{chr(ord('a') + int(found[2]))}" if int(found[2]) < 26 else found[0]

    return re.sub(r"^(\s*\(hd(\d+)\)\s+)\S+", rewrite, text, flags=re.MULTILINE)


def has_boot_code(sector: bytes) -> bool:
    """Whether a master boot record has a program; a jump over nothing, as an empty GPT disk's, is none."""
    return any(sector[:440])


def _check_bios(system: CopyDisk, boot_sector: bytes) -> list[Finding]:
    kinds = {volume.partition_type for volume in system.volumes}
    if not has_boot_code(boot_sector):
        firmware = "UEFI" if kinds & set(ESP_TYPES) else "another disk"
        return [
            Finding(
                "BOOT_LOADER_MISSING",
                "blocker",
                f"disk {system.id}",
                f"The target starts with a BIOS, and the first disk has no boot code: the source boots by {firmware}",
                "Use a target that starts by UEFI (an image with that boot mode), or run grub-install for the BIOS on "
                "the source and replicate again",
                {"table": system.table},
            )
        ]
    if system.table == "gpt" and BIOS_BOOT_TYPE not in kinds and b"GRUB" in boot_sector:
        return [
            Finding(
                "BIOS_BOOT_PARTITION_MISSING",
                "warning",
                f"disk {system.id}",
                "GRUB starts from a GUID partition table without a BIOS boot partition: any tool may overwrite it",
                "Make a BIOS boot partition on the source and run grub-install there",
            )
        ]
    return []


def _adapt_uefi(tree: Tree, disks: Sequence[CopyDisk]) -> list[Finding]:
    if not any(volume.partition_type in ESP_TYPES for disk in disks for volume in disk.volumes):
        return [
            Finding(
                "EFI_PARTITION_MISSING",
                "blocker",
                f"disk {disks[0].id}",
                "The target starts by UEFI, and the copy has no EFI system partition: the source boots with a BIOS",
                "Use a target that starts with a BIOS (an image with that boot mode)",
            )
        ]
    base = next((each for each in ("/boot/efi", "/efi", "/boot") if _inside(tree, each, ["EFI"])), None)
    if base is None:
        return [
            Finding(
                "EFI_PARTITION_UNREADABLE",
                "blocker",
                f"disk {disks[0].id}",
                "The EFI system partition of the copy could not be looked into",
                "Use a rescue system whose kernel has vfat",
            )
        ]
    if _inside(tree, base, FALLBACK):
        return []
    loader = _vendor_loader(tree, base)
    if loader is None:
        return [
            Finding(
                "BOOT_LOADER_MISSING",
                "blocker",
                base,
                "The target starts by UEFI, and the EFI system partition holds no boot loader for x86-64",
                "Run grub-install on the source and replicate again",
            )
        ]
    folder = f"{_inside(tree, base, ['EFI'])}/{_existing_name(tree, base)}"
    tree.write_bytes(CONCERN, f"{folder}/{FALLBACK[2]}", tree.host(loader).read_bytes(), mode=0o700)
    if "shim" in posixpath.basename(loader).lower():
        for name in _COMPANIONS:
            companion = _inside(tree, posixpath.dirname(loader), [name])
            if companion:
                tree.write_bytes(CONCERN, f"{folder}/{name}", tree.host(companion).read_bytes(), mode=0o700)
    return []


def _existing_name(tree: Tree, base: str) -> str:
    """The fallback directory as it is written there, if it is."""
    found = _inside(tree, base, FALLBACK[:2])
    return posixpath.basename(found) if found else FALLBACK[1]


def _vendor_loader(tree: Tree, base: str) -> str | None:
    """The boot loader that the old machine's own entry names: of a distribution, not of the fallback."""
    top = _inside(tree, base, ["EFI"]) or ""
    for loader in _LOADERS:
        for vendor in tree.names(top):
            found = None if vendor.upper() == "BOOT" else _inside(tree, top, [vendor, loader])
            if found:
                return found
    return None


def _inside(tree: Tree, base: str, parts: Sequence[str]) -> str | None:
    """The path below *base*, whose names differ in case as a FAT allows; None when there is none."""
    here = base
    for part in parts:
        name = next((each for each in tree.names(here) if each.lower() == part.lower()), None)
        if name is None:
            return None
        here = posixpath.join(here, name)
    return here
