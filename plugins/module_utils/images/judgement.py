# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is found out about an image, judged: the records that say whether the cloud will take it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..findings import Finding, by_severity
from ..progress import size as readable
from .foreign import ARCHIVES
from .guest import Guest
from .header import Header
from .qemu import Consistency
from .recognise import name_fits
from .vmdk import CHAIN_NAME

IMPORTABLE = ("qcow2", "vhd", "vmdk", "raw")
CONVERTIBLE = ("vdi", "vhdx")
# Pages 213/4945 (ImportImage) and 213/19233 (the console's offline migration). What a GB is there is not said.
LIMITS = {"import_image": (50, 500), "console": (500, None)}
GB, GIB = 10**9, 1 << 30
# The names of systems for ImportImage (page 213/17814) by os-release's ID. What an account may import, the API says.
OS_TYPES = {
    "almalinux": "AlmaLinux", "centos": "CentOS", "coreos": "CoreOS", "debian": "Debian", "fedora": "Fedora",
    "kylin": "Kylin", "opensuse": "OpenSUSE", "opensuse-leap": "OpenSUSE", "opensuse-tumbleweed": "OpenSUSE",
    "rocky": "Rocky Linux", "tencentos": "TencentOS", "tlinux": "TencentOS", "ubuntu": "Ubuntu",
    "uos": "UnionTech", "uniontech": "UnionTech",
}  # fmt: skip
OTHER_OS = "Other Linux"
CONVERT = "Convert it with fleetlift.cvm.image_convert."


@dataclass(frozen=True)
class Wishes:
    """What the user decides: *feature* is import_image or console, *uefi* is warn, block or ignore.

    *purpose* is system or data: a data disk need not boot. Sizes are in bytes.
    """

    feature: str = "import_image"
    uefi: str = "warn"
    purpose: str = "system"
    target_disk_size: int | None = None


@dataclass(frozen=True)
class Look:
    """All that is known of an image. ``table`` and ``firmware`` are empty where the disk was not read."""

    name: str
    size: int
    header: Header
    consistency: Consistency
    table: str = ""
    firmware: tuple[str, ...] = ()
    partitions: int = 0
    has_content: bool = False
    table_problem: str = ""
    beyond_end: int = 0
    guest: Guest | None = None
    unread: str = ""


def import_parameters(look: Look) -> dict[str, str]:
    """The image's part of an ImportImage call: Architecture, OsType, OsVersion and BootMode, empty where unknown."""
    system: Mapping[str, Any] = (look.guest.system if look.guest else None) or {}
    kind = os_type(str(system.get("id", "")), str(system.get("name", "")))
    only_uefi = look.firmware == ("uefi",)
    return {
        "architecture": str(system.get("architecture", "")),
        "os_type": kind if system else "",
        "os_version": str(system.get("version", "")),
        "boot_mode": "UEFI" if only_uefi else "Legacy BIOS" if look.firmware else "",
    }


def os_type(release_id: str, name: str) -> str:
    """The API's name of a distribution; OTHER_OS when it has none."""
    if release_id == "centos" and "stream" in name.lower():
        return "CentOS Stream"
    return OS_TYPES.get(release_id, OTHER_OS)


def judge(look: Look, wishes: Wishes) -> list[Finding]:
    """All findings, worst first."""
    stop = list(_about_the_file(look, wishes))
    if any(finding.blocks for finding in stop) and not look.partitions:
        return by_severity(stop)
    rest = [*_about_the_disk(look, wishes), *_about_the_system(look)] if wishes.purpose == "system" else []
    return by_severity([*stop, *rest])


def _about_the_file(look: Look, wishes: Wishes) -> Iterator[Finding]:
    header, name = look.header, look.name
    if not look.size:
        yield Finding("IMAGE_EMPTY", "blocker", name, "The file is empty.", "Export or copy the image again.")
        return
    if header.format in ARCHIVES:
        yield _archive(look, wishes)
        return
    if header.format not in (*IMPORTABLE, *CONVERTIBLE):
        yield Finding(
            "IMAGE_FORMAT_UNSUPPORTED",
            "blocker",
            name,
            f"By its content this is {header.format}, and not an image of a disk in a format that can be imported.",
            "Give an image in the format qcow2, VHD, VMDK or raw.",
            {"format": header.format},
        )
        return
    if not name_fits(name, header):
        yield Finding(
            "IMAGE_EXTENSION",
            "note",
            name,
            f"Its name ends like that of another format: by its content the image is {header.format}.",
            "Nothing to do: the content decides. Rename it if that confuses people.",
            {"format": header.format},
        )
    yield from _about_integrity(look)
    yield from _about_references(look)
    if header.format in CONVERTIBLE:
        yield Finding(
            "IMAGE_FORMAT_UNSUPPORTED",
            "blocker",
            name,
            f"The cloud imports qcow2, VHD, VMDK and raw, and by its content this image is {header.format}.",
            CONVERT,
            {"format": header.format},
        )
    yield from _about_limits(look, wishes)


def _archive(look: Look, wishes: Wishes) -> Finding:
    packed = look.header.format
    if packed == "gzip" and wishes.feature == "console":
        return Finding(
            "IMAGE_ARCHIVE",
            "warning",
            look.name,
            "This is packed with gzip; the console takes only those .tar.gz that other clouds exported.",
            "Unpack it if it is anything else.",
            {"format": packed},
        )
    return Finding(
        "IMAGE_ARCHIVE",
        "blocker",
        look.name,
        f"By its content this is a {packed} archive and not an image of a disk.",
        "Unpack it, and give the image that is in it.",
        {"format": packed},
    )


def _about_integrity(look: Look) -> Iterator[Finding]:
    header, name = look.header, look.name
    if header.least_size > look.size or header.problem.endswith("is not there") or look.beyond_end:
        lacking = max(header.least_size - look.size, look.beyond_end, 0)
        yield Finding(
            "IMAGE_TRUNCATED",
            "blocker",
            name,
            f"The file ends too early: {header.problem}."
            if header.problem
            else f"The file ends too early: at least {lacking} bytes of the disk are not in it.",
            "Copy or export the image again, and compare its checksum.",
            {"size": look.size, "least_size": header.least_size, "beyond_end": look.beyond_end},
        )
    elif header.problem:
        yield _corrupt(name, f"its header is damaged: {header.problem}", {"problem": header.problem})
    elif not look.consistency.ok:
        reason = look.consistency.reason or f"qemu-img check finds {look.consistency.errors} errors in its tables"
        yield _corrupt(name, reason, look.consistency.record())
    elif look.table_problem:
        yield _corrupt(
            name, f"the partition table on it is damaged: {look.table_problem}", {"problem": look.table_problem}
        )
    if look.consistency.leaks:
        yield Finding(
            "IMAGE_LEAKS",
            "note",
            name,
            f"{look.consistency.leaks} clusters of the image are in use by nothing. Its data is whole.",
            "Nothing to do. Converting it makes it smaller.",
            {"leaks": look.consistency.leaks},
        )
    if header.dirty:
        yield Finding(
            "IMAGE_IN_USE",
            "warning",
            name,
            "The image was not closed: a virtual machine uses it, or did when its host stopped.",
            "Shut the virtual machine down and export the image again.",
        )
    if header.encrypted:
        yield Finding(
            "IMAGE_ENCRYPTED",
            "blocker",
            name,
            "The image is encrypted.",
            "Decrypt it with qemu-img convert, which asks for its secret.",
        )


def _corrupt(name: str, why: str, evidence: dict[str, Any]) -> Finding:
    return Finding(
        "IMAGE_CORRUPT",
        "blocker",
        name,
        f"The image is damaged: {why}.",
        "Export the image again, and compare its checksum after each copy. The cloud would say that it cannot get the "
        "image's metadata.",
        evidence,
    )


def _about_references(look: Look) -> Iterator[Finding]:
    header, name = look.header, look.name
    if header.format == "vmdk" and (
        header.backing or CHAIN_NAME.search(name) or any(map(CHAIN_NAME.search, header.parts))
    ):
        yield Finding(
            "IMAGE_SNAPSHOT_CHAIN",
            "blocker",
            name,
            "This is one link of a chain of VMware snapshots, and not a whole disk.",
            "Delete (consolidate) all snapshots of the virtual machine, then export its disk again.",
            {"parent": header.backing, "parts": list(header.parts)},
        )
    elif header.backing:
        yield Finding(
            "IMAGE_BACKING_FILE",
            "blocker",
            name,
            f"The image is only the difference to another file ({header.backing}), which was not looked at.",
            "Merge the two where both are: qemu-img convert, or consolidate the snapshots on the old platform.",
            {"backing_file": header.backing},
        )
    elif header.format == "qcow2" and header.parts:
        yield Finding(
            "IMAGE_EXTERNAL_DATA",
            "blocker",
            name,
            f"The data of the image is in another file ({header.parts[0]}), which was not looked at.",
            "Convert it into one file where both are, with qemu-img convert.",
            {"parts": list(header.parts)},
        )
    elif header.parts or header.variant == "extent":
        yield Finding(
            "IMAGE_SPLIT",
            "blocker",
            name,
            f"The disk is split into {len(header.parts)} files, of which this one only names the others."
            if header.parts
            else "This is one part of a disk that is split into several files.",
            f"{CONVERT} Give it the file that names the others.",
            {"parts": list(header.parts)},
        )
    if header.snapshots:
        yield Finding(
            "IMAGE_INTERNAL_SNAPSHOTS",
            "warning",
            name,
            f"The image holds {len(header.snapshots)} snapshots. Its present state is imported without them, and their "
            "size counts.",
            f"{CONVERT} It leaves them behind.",
            {"snapshots": list(header.snapshots)},
        )


def _about_limits(look: Look, wishes: Wishes) -> Iterator[Finding]:
    actual, virtual = LIMITS[wishes.feature]
    for code, what, have, limit in (
        ("IMAGE_TOO_LARGE", "file", look.size, actual),
        ("IMAGE_DISK_TOO_LARGE", "disk in it", look.header.virtual_size or 0, virtual),
    ):
        if limit is None or have <= limit * GB:
            continue
        sure = have > limit * GIB
        smaller = (
            "Convert it to a compressed qcow2 with fleetlift.cvm.image_convert, or migrate the running server instead."
            if code == "IMAGE_TOO_LARGE"
            else "Shrink the disk on the old platform, or migrate the running server, which has no such limit."
        )
        yield Finding(
            code,
            "blocker" if sure else "warning",
            look.name,
            f"The {what} has {readable(have)}, and at most {limit} GB can be imported"
            + ("." if sure else "; whether 10^9 or 2^30 bytes are a GB there is not documented."),
            smaller,
            {"bytes": have, "limit_gb": limit, "feature": wishes.feature},
        )
    if wishes.target_disk_size is not None and (look.header.virtual_size or 0) > wishes.target_disk_size:
        yield Finding(
            "TARGET_DISK_SMALLER",
            "blocker",
            look.name,
            f"The disk in the image has {readable(look.header.virtual_size)}, the target's disk "
            f"{readable(wishes.target_disk_size)}.",
            "Enlarge the target's disk. The cloud would say that the verification of the image file failed.",
            {"virtual_size": look.header.virtual_size, "target_disk_size": wishes.target_disk_size},
        )


def _about_the_disk(look: Look, wishes: Wishes) -> Iterator[Finding]:
    if look.unread:
        yield Finding(
            "IMAGE_UNREAD",
            "warning",
            look.name,
            f"The disk in the image could not be looked at: {look.unread}.",
            "Read the reason. What is on the disk is not known before it boots.",
        )
        return
    if not look.table:
        return
    if look.table == "none":
        yield Finding(
            "IMAGE_UNPARTITIONED",
            "blocker",
            look.name,
            "The disk has no partition table, so nothing boots from it."
            + ("" if look.has_content else " Nothing on it is known here either."),
            "Give the image of a whole disk, and not that of a partition. If it is a data disk, say so with "
            "purpose: data.",
        )
        return
    if not look.firmware:
        yield Finding(
            "IMAGE_NOT_BOOTABLE",
            "blocker",
            look.name,
            "The disk has neither boot code in its first sector nor an EFI system partition.",
            "Give the image of the disk that the server boots from. If it is a data disk, say so with purpose: data.",
        )
    if wishes.uefi != "ignore" and (look.table == "gpt" or look.firmware == ("uefi",)):
        block = wishes.uefi == "block"
        only_uefi = look.firmware == ("uefi",)
        yield Finding(
            "IMAGE_UEFI" if only_uefi else "IMAGE_GPT",
            "blocker" if block else "warning",
            look.name,
            "The system starts by UEFI only. The guide says that this needs a ticket; the API has a boot mode for it."
            if only_uefi
            else "The disk has a GUID partition table. The guide says that it is not supported; the API does not.",
            "Try it with one image (boot mode UEFI where it starts by UEFI only), or ask the vendor by ticket. "
            "Migrating the running server has no such limit.",
            {"table": look.table, "firmware": list(look.firmware)},
        )


def _about_the_system(look: Look) -> Iterator[Finding]:
    guest, name = look.guest, look.name
    if guest is None:
        return
    for each in guest.unread:
        yield Finding(
            "IMAGE_UNREAD",
            "note",
            name,
            f"Of the disk, {each['what']} could not be read: {each['why']}.",
            "Read the reason. fleetlift.cvm.image_prepare mounts a copy of the image, and sees more.",
            dict(each),
        )
    if guest.system is None:
        if not guest.unread:
            yield Finding(
                "IMAGE_NO_ROOT",
                "blocker",
                name,
                "No filesystem on the disk holds a Linux system.",
                "Give the image of the disk with the root filesystem. If it is a data disk, say so with purpose: data.",
            )
        return
    yield from _about_drivers(guest, name)
    if guest.cloud_init is False:
        yield Finding(
            "IMAGE_NO_CLOUD_INIT",
            "warning",
            name,
            "The system has no cloud-init, which ImportImage asks for.",
            "Import it with Force. The instance then keeps its own password and address configuration.",
        )
    if os_type(guest.system["id"], guest.system["name"]) == OTHER_OS:
        yield Finding(
            "IMAGE_OS_UNKNOWN",
            "warning",
            name,
            f"ImportImage has no name for {guest.system['name'] or 'this system'}.",
            f"Give os_type and os_version yourself; {OTHER_OS} is taken where the account's list has it.",
            {"id": guest.system["id"], "version": guest.system["version"]},
        )


def _about_drivers(guest: Guest, name: str) -> Iterator[Finding]:
    if not guest.kernels:
        yield Finding(
            "NO_KERNEL",
            "blocker",
            name,
            "The system has no kernel with an image in /boot and modules in /lib/modules.",
            "Install one on the server and export it again.",
        )
        return
    lacking = [kernel for kernel in guest.kernels if kernel["virtio"] is False]
    if not lacking:
        return
    all_lack = len(lacking) == len(guest.kernels)
    if any(kernel["no_driver"] for kernel in lacking):
        yield Finding(
            "KERNEL_WITHOUT_VIRTIO",
            "blocker" if all_lack and all(kernel["no_driver"] for kernel in lacking) else "warning",
            name,
            f"Kernel {', '.join(each['version'] for each in lacking if each['no_driver'])} has no virtio drivers.",
            "Install a kernel with virtio drivers on the server and export it again.",
            {"kernels": [kernel["version"] for kernel in lacking]},
        )
    repairable = [kernel for kernel in lacking if not kernel["no_driver"]]
    if repairable:
        yield Finding(
            "IMAGE_NO_VIRTIO",
            "blocker" if all_lack else "warning",
            name,
            f"The initramfs of kernel {', '.join(kernel['version'] for kernel in repairable)} lacks "
            f"{' '.join(sorted({driver for kernel in repairable for driver in kernel['missing']}))}: "
            "it would not find its disk on a CVM.",
            "Have fleetlift.cvm.image_prepare make it again on a copy of the image.",
            {"kernels": [kernel["version"] for kernel in repairable]},
        )
