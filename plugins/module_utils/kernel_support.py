# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a source's kernel can drive the target's disks and tell which blocks change, from its own files.

Pure: every function takes the text of a file, None where there is no such file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .findings import Finding

# A CVM's disk is out of reach without the first two, its network without the last.
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net")
DISK_DRIVERS = ("virtio_pci", "virtio_blk")
BUILTIN, MODULE, ABSENT, UNKNOWN = "builtin", "module", "absent", "unknown"

# efivarfs: SecureBoot of the UEFI specification's global variables (UEFI 2.10, section 3.3).
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# The instances of tracefs that changes are tracked with came with Linux 3.10.
TRACING_SINCE = (3, 10)
BOOT_SPACE = 96 << 20


@dataclass(frozen=True)
class Tracing:
    """Whether the kernel can tell which blocks change; ``reason`` says why not."""

    available: bool
    reason: str | None
    lockdown: str | None
    secure_boot: bool | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def driver_states(dependencies: str | None, builtin: str | None, config: str | None) -> dict[str, str]:
    """``builtin``, ``module``, ``absent`` or ``unknown`` by driver.

    From modules.dep and modules.builtin (kbuild, depmod(8)), or where they do not tell from the kernel's config. A
    driver is absent only where it is in neither of both files, or where the config is there and does not set it.
    """
    return {driver: _state(driver, dependencies, builtin, config) for driver in DRIVERS}


def _state(driver: str, dependencies: str | None, builtin: str | None, config: str | None) -> str:
    file = re.compile(rf"(?m)(?:^|/){driver.replace('_', '[-_]')}\.ko(?:\.\w+)?(?=:|\s|\Z)")
    if file.search(builtin or ""):
        return BUILTIN
    if file.search(dependencies or ""):
        return MODULE
    if config is not None:
        found = re.search(rf"(?m)^CONFIG_{driver.upper()}=([ym])$", config)
        return {"y": BUILTIN, "m": MODULE}[found[1]] if found else ABSENT
    return ABSENT if dependencies and builtin else UNKNOWN


def initramfs_drivers(listing: str) -> dict[str, bool]:
    """Which of the drivers are files in an initramfs, from the listing of lsinitramfs(8) or lsinitrd(1)."""
    return {
        driver: re.search(rf"/{driver.replace('_', '[-_]')}\.ko(?:\.\w+)?(?:\s|\Z)", listing) is not None
        for driver in DRIVERS
    }


def parse_lockdown(text: str | None) -> str | None:
    """The chosen word in the text of /sys/kernel/security/lockdown, such as ``none [integrity] confidentiality``."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found[1] if found else None


def parse_secure_boot(data: bytes | None) -> bool | None:
    """Whether firmware verified the kernel: four bytes of attributes, then one that is 1; None without the variable."""
    return data[4] == 1 if data is not None and len(data) >= 5 else None


def tracing(release: str, lockdown: str | None, secure_boot: bool | None, filesystems: str | None) -> Tracing:
    """Whether changes can be tracked, from the kernel's release, its lockdown and the text of /proc/filesystems."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    known = {line.split()[-1] for line in (filesystems or "").splitlines() if line.strip()}
    reason = None
    if lockdown == "confidentiality":
        reason = "the kernel is locked down to confidentiality, which forbids tracefs"
    elif numbers and (int(numbers[1]), int(numbers[2])) < TRACING_SINCE:
        reason = f"the kernel {release} is older than {'.'.join(map(str, TRACING_SINCE))}"
    elif known and not known & {"tracefs", "debugfs"}:
        reason = "the kernel was built without tracefs"
    return Tracing(reason is None, reason, lockdown, secure_boot)


def kernel_findings(
    *,
    release: str,
    drivers: Mapping[str, str],
    initramfs: Mapping[str, bool] | None,
    traced: Tracing,
    disks: Sequence[Mapping[str, Any]],
    selinux: str,
) -> list[Finding]:
    """What the kernel of the source means for the copy. *initramfs* is None where it could not be looked into."""
    findings = []
    absent = [driver for driver in DISK_DRIVERS if drivers.get(driver) == ABSENT]
    if absent:
        findings.append(
            Finding(
                "KERNEL_WITHOUT_VIRTIO",
                "blocker",
                f"kernel {release}",
                f"The running kernel has no {' and no '.join(absent)}, neither built in nor as a module: on the target"
                " it would not find its disks.",
                "Install a kernel of the distribution that has it, boot it, and run again.",
                {"drivers": dict(drivers)},
            )
        )
    elif drivers.get("virtio_net") == ABSENT:
        findings.append(
            Finding(
                "KERNEL_WITHOUT_VIRTIO_NET",
                "warning",
                f"kernel {release}",
                "The running kernel has no virtio_net: on the target it would come up without a network.",
                "Install a kernel of the distribution that has it, boot it, and run again.",
                {"drivers": dict(drivers)},
            )
        )
    lacking = [driver for driver in DISK_DRIVERS if drivers.get(driver) == MODULE and not (initramfs or {}).get(driver)]
    if initramfs is not None and lacking and not absent:
        findings.append(
            Finding(
                "INITRAMFS_WITHOUT_VIRTIO",
                "note",
                f"kernel {release}",
                f"The initramfs of the running kernel does not hold {' and '.join(lacking)}.",
                "Nothing: the boot adaptation makes the copy's initramfs again with them. Without it, with"
                " fleetlift_boot_adapt=false, the target would not boot.",
                {"initramfs": dict(initramfs)},
            )
        )
    if not traced.available:
        findings.append(_not_tracked(traced, disks))
    if selinux in ("enforcing", "permissive"):
        findings.append(
            Finding(
                "SELINUX_ACTIVE",
                "note",
                "SELinux",
                f"SELinux is {selinux}. The vendor's own tool wants it disabled; this migration copies the labels with"
                " the blocks.",
                "Nothing: files that the boot adaptation edits are relabelled at the target's first start, which takes"
                " longer for it.",
                {"selinux": selinux},
            )
        )
    return findings


def _not_tracked(traced: Tracing, disks: Sequence[Mapping[str, Any]]) -> Finding:
    seconds = full_read_seconds(disks)
    length = (
        f"about {round(seconds)} seconds by a sample of this server's disks" if seconds else "as long as that takes"
    )
    return Finding(
        "CHANGES_NOT_TRACKED",
        "warning",
        "tracefs",
        f"Which blocks change cannot be tracked: {traced.reason}. The last pass reads all that is in use once more"
        f" while the services are stopped: {length}.",
        "Plan the window for it, or boot the source with a kernel or a lockdown mode that allows tracefs.",
        {**traced.record(), "seconds": None if seconds is None else round(seconds)},
    )


def full_read_seconds(disks: Sequence[Mapping[str, Any]]) -> float | None:
    """How long reading what is in use takes, disks side by side; None where one of them was not sampled."""
    longest = 0.0
    for disk in disks:
        rate = disk.get("read_bytes_per_second")
        if not rate:
            return None
        longest = max(longest, (disk.get("used_bytes") or disk["size"]) / rate)
    return longest or None


def boot_space_finding(disks: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Whether the filesystem with the kernels has no room for one more initramfs."""
    by_mountpoint = {
        point: filesystem
        for disk in disks
        for filesystem in disk["filesystems"]
        for point in filesystem["mountpoints"]
        if filesystem["free_bytes"] is not None
    }
    where = next((point for point in ("/boot", "/") if point in by_mountpoint), None)
    if where is None or by_mountpoint[where]["free_bytes"] >= BOOT_SPACE:
        return None
    free = by_mountpoint[where]["free_bytes"]
    return Finding(
        "BOOT_SPACE_LOW",
        "warning",
        where,
        f"Only {free >> 20} MiB are free on {where}: the boot adaptation makes an initramfs beside the old one.",
        "Remove kernels that are not used any more, or free other space there.",
        {"free_bytes": free},
    )
