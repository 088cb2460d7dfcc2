# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources that are virtual machines: booted once, then restored in seconds from a snapshot in the lab's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lab import bootdisk
from lab.command import run
from lab.description import Source, Virtual
from lab.errors import LabError
from lab.guestimage import GuestImage
from lab.machines.protocol import MachineDisk
from lab.machines.qemu import QemuMachine, accelerator
from lab.machines.virtual import VirtualMachine, wait_for

SNAPSHOT = "booted"
# Emulated boots take 20 to 150 seconds, depending on what else the host does; restoring takes 2 to 5.
BOOT_TIMEOUT = 600.0
RESTORE_TIMEOUT = 120.0
KEY = "id_ed25519"
VARIABLES = "variables.qcow2"
SCHEMA = 1

# Makes the machine from its disks, the directory of its files and the name of the snapshot to go on from.
Make = Callable[[list[MachineDisk], str], VirtualMachine]


class BootedSource:
    """One source, in the lab's directory ``work``; ``controller`` is the namespace that SSH is tried from."""

    def __init__(
        self, source: Source, virtual: Virtual, *, image: GuestImage, cache: Path, work: Path, machine_files: Path,
        controller: str, gateway: str,
    ) -> None:  # fmt: skip
        self._source = source
        self._virtual = virtual
        self._image = image
        self._work = work
        self._machine_files = machine_files
        self._controller = controller
        self._gateway = gateway
        made = [asdict(source), image.key, gateway, Path(bootdisk.__file__).read_text(encoding="utf-8"), SCHEMA]
        # What a guest has seen of its processor is part of its snapshot.
        made.append(accelerator())
        self._saved = cache / f"vm-{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]}"

    def start(self, make: Make, authorized_key: str, progress: Callable[[str], None]) -> VirtualMachine:
        """Return the running machine; it lets ``authorized_key`` in and has the right time."""
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._virtual.kind == "uml":
            return self._boot(make, authorized_key)
        if not self._saved.is_dir():
            progress(f"booting {self._source.name} for the first time (one or two minutes)")
            self._save(make)
        machine = make(self._restored(), SNAPSHOT)
        machine.start()
        self._wait(machine, self._saved / KEY, RESTORE_TIMEOUT)
        self._let_in(self._saved / KEY, authorized_key)
        return machine

    def _boot(self, make: Make, authorized_key: str) -> VirtualMachine:
        """Build the disks and boot them, which takes a kernel at the host's speed as long as restoring would."""
        key = self._work / KEY
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleetlift-lab", "-f", str(key)])
        public = key.with_suffix(".pub").read_text(encoding="ascii")
        files = bootdisk.build(self._source, self._virtual, self._work, self._image, self._gateway, public)
        machine = make(
            [MachineDisk(file, disk.serial) for file, disk in zip(files, self._source.disks, strict=True)], ""
        )
        machine.start()
        self._wait(machine, key, BOOT_TIMEOUT)
        self._let_in(key, authorized_key)
        return machine

    def _let_in(self, key: Path, authorized_key: str) -> None:
        """Set the guest's clock and exchange the key that is let in."""
        lines = f"date -s @{time.time():.0f} >/dev/null\ncat >/root/.ssh/authorized_keys <<'END'\n{authorized_key}END\n"
        run(self._ssh(key, "sh -e"), stdin=lines)

    def _save(self, make: Make) -> None:
        """Build the disks, boot them, and keep disks, memory and keys."""
        first = self._work / "first"
        shutil.rmtree(first, ignore_errors=True)
        first.mkdir(mode=0o700)
        key = first / KEY
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleetlift-lab", "-f", str(key)])
        public = key.with_suffix(".pub").read_text(encoding="ascii")
        bases = bootdisk.build(self._source, self._virtual, first, self._image, self._gateway, public)
        disks = []
        for number, (base, disk) in enumerate(zip(bases, self._source.disks, strict=True)):
            file = first / f"disk-{number}.qcow2"
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(file)])
            disks.append(MachineDisk(file, disk.serial, disk.size))
        machine = make(disks, "")
        try:
            machine.start()
            self._wait(machine, key, BOOT_TIMEOUT)
            assert isinstance(machine, QemuMachine)
            machine.save(SNAPSHOT)
        finally:
            machine.stop(hard=True)
        if self._variables.exists():
            self._variables.rename(first / VARIABLES)
        try:
            first.rename(self._saved)
        except OSError as error:
            # Another lab was faster.
            if not self._saved.is_dir():
                raise LabError(f"{first} cannot be kept as {self._saved}: {error.strerror}") from error
            shutil.rmtree(first)

    @property
    def _variables(self) -> Path:
        return self._machine_files / VARIABLES

    def _restored(self) -> list[MachineDisk]:
        """Copy what was saved; the disks' first content stays where it is and is only read."""
        disks = []
        for number, disk in enumerate(self._source.disks):
            file = self._work / f"disk-{number}.qcow2"
            run(["cp", "--sparse=always", str(self._saved / file.name), str(file)])
            base = self._saved / f"base-{number}.img"
            run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base), str(file)])
            disks.append(MachineDisk(file, disk.serial, disk.size))
        if (self._saved / VARIABLES).exists():
            shutil.copy(self._saved / VARIABLES, self._variables)
        return disks

    def _wait(self, machine: VirtualMachine, key: Path, timeout: float) -> None:
        wait_for(machine, lambda: self._answers(key), "SSH", timeout)

    def _answers(self, key: Path) -> bool:
        try:
            run(self._ssh(key, "true"), timeout=60)
        except LabError:
            return False
        return True

    def _ssh(self, key: Path, command: str) -> list[str]:
        words = ["nsenter", f"--net=/run/netns/{self._controller}", "ssh", "-F", "none", "-i", str(key)]
        for option in (
            "BatchMode=yes", "ConnectTimeout=3", "IdentitiesOnly=yes", "LogLevel=ERROR", "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={os.devnull}",
        ):  # fmt: skip
            words += ["-o", option]
        return [*words, f"root@{self._source.address}", command]
