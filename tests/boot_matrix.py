# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Migrate virtual machines of many kinds, one after the other, and boot each as a virtio instance.

    python tests/boot_matrix.py [CASE...]

Each case is a lab of its own and the playbooks of the Molecule scenario `boot`: remember the source, migrate it, look
whether the target is the same server. What the playbooks say is in build/boot-matrix/CASE.log.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SCENARIO = REPOSITORY / "extensions/molecule/boot"
LOGS = REPOSITORY / "build/boot-matrix"
LAB = [sys.executable, "-m", "lab", "--name", os.environ.get("FLEETLIFT_LAB") or "bootmatrix"]


@dataclass(frozen=True)
class Case:
    """A source: its hardware and layout, the filesystem of its root, and further disks as mount and filesystem.

    ``control`` has its unadapted copy booted, ``grow`` has the target's larger disk used; ``plays`` is what happens.
    """

    name: str
    what: str
    virtual: dict[str, Any]
    root: str = "ext4"
    data: dict[str, str] = field(default_factory=dict)
    control: bool = False
    grow: bool = False
    plays: tuple[str, ...] = ("prepare", "converge", "verify")

    @property
    def firmware(self) -> str:
        return str(self.virtual.get("firmware", "bios"))

    @property
    def machine(self) -> str:
        return str(self.virtual.get("kind", "qemu"))

    @property
    def devices(self) -> list[str]:
        """The names of the disks on the source."""
        prefix = "vd" if self.machine == "uml" else "sd"
        return [f"{prefix}{'abc'[number]}" for number in range(1 + len(self.data))]

    def lab(self) -> dict[str, Any]:
        """The description of the lab."""
        mounts = {"/": self.root, **self.data}
        disks = [
            {
                "device": device,
                "serial": f"LAB-BOOT1-{number}",
                "size_mib": 2048 if number == 0 else 512,
                "filesystem": filesystem,
                "mount": mount,
            }
            for number, (device, (mount, filesystem)) in enumerate(zip(self.devices, mounts.items(), strict=True))
        ]
        described: dict[str, Any] = yaml.safe_load((REPOSITORY / "tests/boot-lab.yml").read_text(encoding="utf-8"))
        described["sources"][0] |= {"virtual": {"initramfs": "dep", **self.virtual}, "disks": disks}
        described["instances"][0] |= {
            "firmware": self.firmware if self.machine == "qemu" else self.machine,
            "data_disks": [{"id": f"disk-bootdat{number}", "size_gb": 1} for number in range(1, len(disks))],
        }
        return described

    def inventory(self) -> dict[str, Any]:
        """The scenario's inventory with this case's disks."""
        described: dict[str, Any] = yaml.safe_load((SCENARIO / "inventory/hosts.yml").read_text(encoding="utf-8"))
        host = described["sources"]["children"]["booting"]["hosts"]["boot1"]
        host["boot_control"] = self.control
        host["boot_firmware"] = self.firmware
        host["boot_grown"] = host["fleetlift_boot_adapt_grow"] = self.grow
        host["boot_machine"] = self.machine
        targets = ["system", *(f"data{number}" for number in range(1, len(self.data) + 1))]
        host["fleetlift_disks"] = [
            {"source": f"/dev/{device}", "target": target} for device, target in zip(self.devices, targets, strict=True)
        ]
        return described


IDE = {"firmware": "bios", "bus": "ide", "nic": "e1000"}
AHCI = {"bus": "ahci", "nic": "e1000e", "table": "gpt"}
CASES = (
    Case("dep", "MBR, BIOS, IDE, e1000, ext4, initramfs for this hardware only", IDE, control=True),
    Case("uefi", "GPT, UEFI, AHCI, e1000e, ext4", {**AHCI, "firmware": "uefi"}),
    Case("lvm", "MBR, BIOS, IDE, e1000, root on LVM, separate /boot", {**IDE, "lvm": True, "separate_boot": True}),
    Case(
        "gpt-bios", "GPT with BIOS boot partition, AHCI, e1000e, ext4, grown", {**AHCI, "firmware": "bios"}, grow=True
    ),
    Case("debian-11", "Debian 11, MBR, BIOS, IDE, e1000", {**IDE, "release": "bullseye"}),
    Case("debian-13", "Debian 13, GPT, UEFI, AHCI, e1000e", {**AHCI, "firmware": "uefi", "release": "trixie"}),
    Case("dracut", "MBR, BIOS, IDE, e1000, initramfs by dracut for this hardware only", {**IDE, "generator": "dracut"}),
    Case(
        "disks",
        "MBR, BIOS, IDE, e1000, root on xfs, two data disks by device name in fstab",
        IDE,
        root="xfs",
        data={"/var/www": "ext4", "/srv": "xfs"},
    ),
    Case(
        "uml",
        "User-mode Linux: root on LVM and xfs, separate /boot, a data disk by device name in fstab; no firmware",
        {"kind": "uml", "lvm": True, "separate_boot": True},
        root="xfs",
        data={"/var/www": "ext4"},
        grow=True,
    ),
    Case(
        "power-loss",
        "User-mode Linux: the landing loses its power in the middle of the initramfs; the same command goes on",
        {"kind": "uml"},
        plays=("prepare", "power_loss", "converge", "verify"),
    ),
    Case(
        "unhealthy",
        "User-mode Linux: a target whose systemd is degraded, then one with other host keys; then it moves after all",
        {"kind": "uml"},
        plays=("prepare", "unhealthy", "converge", "verify"),
    ),
    Case(
        "way-back",
        "MBR, BIOS, IDE, e1000: a target that cannot boot; the source is the server again; then it moves after all",
        IDE,
        plays=("prepare", "way_back", "converge", "verify"),
    ),
)


def run_case(case: Case, work: Path) -> bool:
    """Run one case; whether all of it went well. Its lab is gone afterwards."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "lab.yml").write_text(yaml.safe_dump(case.lab()), encoding="utf-8")
    (work / "hosts.yml").write_text(yaml.safe_dump(case.inventory()), encoding="utf-8")
    inventories = ["-i", str(REPOSITORY / "extensions/molecule/inventory"), "-i", str(work / "hosts.yml")]
    environment = {**os.environ, "FLEETLIFT_REPOSITORY": str(REPOSITORY), "PYTHONPATH": str(REPOSITORY)}
    steps = [[*LAB, "down"], [*LAB, "up", str(work / "lab.yml")]]
    steps += [
        [*LAB, "run", "--", "ansible-playbook", *inventories, "--limit", "booting", str(SCENARIO / f"{play}.yml")]
        for play in case.plays
    ]
    with (LOGS / f"{case.name}.log").open("wb") as log:
        try:
            for step in steps:
                done = subprocess.run(step, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False)
                if done.returncode != 0:
                    return False
            return True
        finally:
            subprocess.run([*LAB, "down"], cwd=REPOSITORY, stdout=log, stderr=log, check=False)


def main() -> int:
    wanted = sys.argv[1:]
    unknown = sorted(set(wanted) - {case.name for case in CASES})
    if unknown:
        sys.exit(f"there is no case {', '.join(unknown)}; there are {', '.join(case.name for case in CASES)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        started = time.monotonic()
        passed = run_case(case, LOGS / case.name)
        outcomes.append(passed)
        word = "passed" if passed else f"FAILED, see build/boot-matrix/{case.name}.log"
        print(f"{case.name}: {case.what}: {word} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{outcomes.count(True)} passed, {outcomes.count(False)} failed")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
