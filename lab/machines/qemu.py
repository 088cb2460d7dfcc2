# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines with firmware, boot loader and kernel of their own: QEMU, emulated in full.

Emulated, unless KVM is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.command import run
from lab.machines.protocol import MachineDisk, MachineError, State
from lab.machines.qmp import Monitor
from lab.machines.virtual import RESCUE_WORDS, Run, VirtualMachine
from lab.network import TAP

PROGRAMS = {
    "busybox": "busybox-static",
    "cpio": "cpio",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "openssl": "openssl",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "sfdisk": "fdisk",
}
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
MONITOR_TIMEOUT = 120.0
NIC_SLOT = "0x3"


# The instructions that every server of the last decade has, and that the emulator is fast at: with those for AES, TLS
# takes a tenth of the time that it takes without them. Later ones (AVX2) cost more in emulation than they save.
PROCESSOR = "qemu64,svm=off,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq"
# The kernel patches its own code while it runs, with a breakpoint that stands there for a moment. QEMU 7.2, which
# emulates each processor in a thread of its own, may keep that when it is gone: both spin on it, and the guest is lost.
PROCESSORS = "1"
ACCELERATOR = "FLEETLIFT_LAB_ACCELERATOR"


def accelerator() -> list[str]:
    """Return QEMU's words for what runs the guest: emulation, unless the environment asks for ``kvm`` by name.

    Never by looking at /dev/kvm: on machines that are virtual themselves it may open, and the guest hangs.
    """
    chosen = os.environ.get(ACCELERATOR) or "tcg"
    if chosen == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if chosen == "tcg":
        return ["-accel", "tcg,thread=multi", "-cpu", PROCESSOR]
    raise MachineError(f"{ACCELERATOR} is {chosen!r}, and can be tcg or kvm")


@dataclass(frozen=True)
class Hardware:
    """What a virtual machine has, in the words of the lab's description; ``memory`` in MiB."""

    firmware: str
    bus: str
    nic: str
    memory: int = 1024

    @property
    def chipset(self) -> str:
        """The old one has IDE, the new one AHCI and PCI Express."""
        return "q35" if self.bus == "ahci" or self.nic == "e1000e" else "pc"


_NICS = {"e1000": "e1000", "e1000e": "e1000e", "virtio": "virtio-net-pci"}


def disk_words(hardware: Hardware, disks: Sequence[MachineDisk]) -> list[str]:
    """Return QEMU's words for the disks; the guest reads their serials, the first is booted."""
    words = []
    for number, disk in enumerate(disks):
        kind = "qcow2" if disk.file.suffix == ".qcow2" else "raw"
        # The host's page cache outlives the guest, whose power may be cut at any time.
        words += ["-drive", f"file={disk.file},format={kind},if=none,id=disk{number},cache=unsafe,discard=unmap"]
        options = f"drive=disk{number},serial={disk.serial},bootindex={number + 1}"
        if hardware.bus == "ide":
            words += ["-device", f"ide-hd,bus=ide.{number // 2},unit={number % 2},{options}"]
        elif hardware.bus == "ahci":
            words += ["-device", f"ide-hd,bus=ide.{number},{options}"]
        else:
            words += ["-device", f"virtio-blk-pci,{options}"]
    return words


class QemuMachine(VirtualMachine):
    """A virtual machine; see Machine for what its calls mean.

    ``start`` returns when the firmware runs. A machine with a ``snapshot`` is started by restoring it, once.
    """

    def __init__(
        self, name: str, disks: Sequence[MachineDisk], hardware: Hardware, *, snapshot: str = "", **shared: Any
    ) -> None:
        super().__init__(name, disks, **shared)
        self.hardware = hardware
        self._snapshot = snapshot

    def start(self) -> None:
        """Boot what is on the first disk, or go on from the snapshot."""
        with self._calls:
            snapshot, self._snapshot = self._snapshot, ""
            self._run_qemu(State.RUNNING, ["-loadvm", snapshot] if snapshot else [])

    def rescue(self, username: str, password: str) -> None:
        """Boot the rescue system from RAM."""
        with self._calls:
            initramfs = self._directory / "rescue.cpio"
            self._write_initramfs(initramfs, [self._image.rescue_initramfs], username, password)
            words = ["-kernel", str(self._image.rescue_kernel), "-initrd", str(initramfs)]
            try:
                self._run_qemu(State.RESCUE, [*words, "-append", f"console=ttyS0,115200 {RESCUE_WORDS}"])
            finally:
                # QEMU has read it, and it lets in whoever guesses the password from its hash.
                initramfs.unlink()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Pause the guest for the length of the block."""
        with self._calls:
            current = self._run
            if current is None:
                yield
                return
            with self._monitor(current) as monitor:
                monitor.execute("stop")
            try:
                yield
            finally:
                with self._monitor(current) as monitor:
                    monitor.execute("cont")

    def save(self, snapshot: str) -> None:
        """Keep the running guest, memory included, in its disks, and cut the power."""
        with self._calls:
            current = self._run
            if current is None:
                raise MachineError(f"{self._name} is off and cannot be saved")
            with self._monitor(current) as monitor:
                monitor.execute("stop")
                monitor.human(f"savevm {snapshot}")
            self.stop(hard=True)

    def _words(self, extra: Sequence[str]) -> list[str]:
        hardware, platform = self.hardware, self._platform
        mac = self._network.port(self._name).guest_mac
        words = [
            *self._inside, "qemu-system-x86_64", "-name", self._name, "-nodefaults", "-no-user-config",
            "-display", "none",
            *accelerator(), "-machine", hardware.chipset,
            "-smp", PROCESSORS, "-m", str(hardware.memory), "-rtc", "base=utc",
            "-smbios", f"type=1,manufacturer={platform.vendor},product={platform.product}",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{self._monitor_path},server=on,wait=off",
            "-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no",
            "-device", f"{_NICS[hardware.nic]},netdev=net0,mac={mac},romfile=,addr={NIC_SLOT}",
        ]  # fmt: skip
        if hardware.firmware == "uefi":
            words += [
                "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={UEFI_CODE}",
                "-drive", f"if=pflash,unit=1,format=qcow2,file={self._variables()}",
            ]  # fmt: skip
        return [*words, *disk_words(hardware, self._disks), *extra]

    @property
    def _monitor_path(self) -> Path:
        return self._directory / "qmp"

    def _variables(self) -> Path:
        """The firmware's memory: its boot entries stay with the machine, and are saved with it."""
        file = self._directory / "variables.qcow2"
        if not file.exists():
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(UEFI_VARIABLES), str(file)])
        return file

    def _run_qemu(self, state: State, extra: Sequence[str]) -> None:
        if self.hardware.firmware == "uefi" and not UEFI_CODE.exists():
            raise MachineError(f"{UEFI_CODE} is missing: install the package ovmf")
        self._monitor_path.unlink(missing_ok=True)
        self._power_on(state, self._words(extra))

    def _await_ready(self, current: Run) -> None:
        # Answers once the machine is built and a snapshot, if any, is loaded.
        with self._monitor(current) as monitor:
            monitor.execute("query-status")

    def _press_power_button(self, current: Run) -> None:
        with self._monitor(current) as monitor:
            monitor.execute("system_powerdown")

    def _cut_power(self, current: Run) -> None:
        # Told to end, QEMU closes the disks' files properly; for the guest it is a power cut all the same.
        current.process.terminate()

    def _monitor(self, current: Run) -> Monitor:
        return Monitor(self._monitor_path, lambda: current.process.poll() is None, MONITOR_TIMEOUT)
