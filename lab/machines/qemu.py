# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines with firmware, boot loader and kernel of their own: QEMU, emulated in full.

Always emulated and never through /dev/kvm: on machines that are virtual themselves it may open, and hang.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.command import run
from lab.errors import LabError
from lab.guestimage import GuestImage, pack
from lab.ledger import Ledger
from lab.machines.protocol import MachineDisk, MachineError, Platform, State
from lab.machines.qmp import Monitor
from lab.network import TAP, Network
from lab.processes import identify

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
# An emulated guest shuts down in 5 to 60 seconds, depending on what else the host does.
STOP_TIMEOUT = 180.0
KILL_TIMEOUT = 30.0
CONSOLE_TAIL = 3000
LEASE = 864000
NIC_SLOT = "0x3"


@dataclass(frozen=True)
class Hardware:
    """What a virtual machine has, in the words of the lab's description; ``memory`` in MiB."""

    firmware: str
    bus: str
    nic: str
    memory: int = 1024
    cpus: int = 1

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


@dataclass
class Run:
    """One QEMU and the DHCP server beside it."""

    process: subprocess.Popen[bytes]
    dhcp: subprocess.Popen[bytes] | None = None


class QemuMachine:
    """A virtual machine; see Machine for what its calls mean.

    ``start`` returns when the firmware runs. A machine with a ``snapshot`` is started by restoring it, once.
    """

    def __init__(
        self,
        name: str,
        disks: Sequence[MachineDisk],
        hardware: Hardware,
        *,
        platform: Platform,
        directory: Path,
        image: GuestImage,
        network: Network,
        ledger: Ledger,
        on_power_off: Callable[[str], None],
        snapshot: str = "",
        leases: bool = False,
    ) -> None:
        self._name = name
        self._disks = list(disks)
        self.hardware = hardware
        self._platform = platform
        self._directory = directory
        self._image = image
        self._network = network
        self._ledger = ledger
        self._on_power_off = on_power_off
        self._snapshot = snapshot
        self._leases = leases
        self._state = State.OFF
        self._run: Run | None = None
        self._calls = threading.RLock()
        self._changed = threading.Condition()
        self._stopping = False
        self.console = directory / "console.log"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.console.touch(mode=0o600)

    @property
    def name(self) -> str:
        """The machine's name in the lab."""
        return self._name

    @property
    def state(self) -> State:
        """What the machine is doing now."""
        return self._state

    @property
    def disks(self) -> list[MachineDisk]:
        """The disks in order, the one that is booted first."""
        return list(self._disks)

    @property
    def root(self) -> Path | None:
        """Nothing of a virtual machine's files can be seen from the host."""
        return None

    def start(self) -> None:
        """Boot what is on the first disk, or go on from the snapshot."""
        with self._calls:
            snapshot, self._snapshot = self._snapshot, ""
            self._power_on(State.RUNNING, ["-loadvm", snapshot] if snapshot else [])

    def rescue(self, username: str, password: str) -> None:
        """Boot the rescue system from RAM."""
        with self._calls:
            initramfs = self._directory / "rescue.cpio"
            self._write_initramfs(initramfs, username, password)
            append = "console=ttyS0,115200 net.ifnames=0 quiet panic=10 mitigations=off"
            words = ["-kernel", str(self._image.rescue_kernel), "-initrd", str(initramfs), "-append", append]
            try:
                self._power_on(State.RESCUE, words)
            finally:
                # QEMU has read it, and it lets in whoever guesses the password from its hash.
                initramfs.unlink()

    def stop(self, *, hard: bool) -> None:
        """Press the power button and wait, or cut the power. A machine that is off stays off."""
        with self._calls:
            current = self._run
            if current is None:
                return
            self._stopping = True
            try:
                if hard:
                    self._cut(current)
                else:
                    with self._monitor(current) as monitor:
                        monitor.execute("system_powerdown")
                    self._wait_off(current, STOP_TIMEOUT)
            finally:
                self._stopping = False

    def reboot(self) -> None:
        """Shut the guest down and boot its first disk again."""
        with self._calls:
            self.stop(hard=False)
            self.start()

    def attach(self, disk: MachineDisk) -> None:
        """Add a disk to a machine that is off."""
        with self._calls:
            if any(known.serial == disk.serial for known in self._disks):
                return
            self._only_off("get a disk")
            self._disks.append(disk)

    def detach(self, serial: str) -> None:
        """Take a disk out of a machine that is off."""
        with self._calls:
            disk = next((known for known in self._disks if known.serial == serial), None)
            if disk is not None:
                self._only_off("give up a disk")
                self._disks.remove(disk)

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

    def destroy(self) -> None:
        """Cut the power and give everything back but the disks."""
        with self._calls:
            self.stop(hard=True)
            self._network.disconnect(self._name)

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

    def tail(self) -> str:
        """Return the end of what the machine said on its serial console, in one piece of plain text."""
        text = self.console.read_bytes()[-CONSOLE_TAIL:].decode("utf-8", "replace")
        return re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1bc|\r", "", text)

    def _only_off(self, what: str) -> None:
        if self._run is not None:
            raise MachineError(f"{self._name} is on, and can {what} only while it is off")

    def _write_initramfs(self, initramfs: Path, username: str, password: str) -> None:
        """The rescue system with its one account laid over it: a kernel unpacks one archive after the other."""
        hashed = run(["openssl", "passwd", "-6", "-stdin"], stdin=f"{password}\n").strip()
        accounts = dict.fromkeys(["root", username])
        over = self._directory / "account"
        shutil.rmtree(over, ignore_errors=True)
        (over / "etc").mkdir(parents=True)
        passwd = (self._image.root / "etc/passwd").read_text(encoding="utf-8").splitlines()
        shadow = (self._image.root / "etc/shadow").read_text(encoding="utf-8").splitlines()
        kept = [line for line in passwd if line.partition(":")[0] not in accounts]
        secret = [line for line in shadow if line.partition(":")[0] not in accounts]
        kept = [*(f"{each}:x:0:0:{each}:/root:/bin/bash" for each in accounts), *kept]
        secret = [f"{each}:{hashed if each == username else '*'}:20000:0:99999:7:::" for each in accounts] + secret
        for name, lines, mode in (("passwd", kept, 0o644), ("shadow", secret, 0o600)):
            (over / "etc" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (over / "etc" / name).chmod(mode)
        initramfs.touch(mode=0o600)
        with initramfs.open("wb") as archive, self._image.rescue_initramfs.open("rb") as base:
            shutil.copyfileobj(base, archive, 1 << 20)
        pack(over, initramfs)
        shutil.rmtree(over)

    def _words(self, extra: Sequence[str]) -> list[str]:
        hardware, platform = self.hardware, self._platform
        mac = self._network.port(self._name).guest_mac
        words = [
            # nsenter and not `ip netns exec`, whose mount namespace would hold every mount of this moment.
            "nsenter", f"--net=/run/netns/{self._network.port(self._name).namespace}",
            "qemu-system-x86_64", "-name", self._name, "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi", "-machine", hardware.chipset, "-cpu", "qemu64,svm=off",
            "-smp", str(hardware.cpus), "-m", str(hardware.memory), "-rtc", "base=utc",
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

    def _power_on(self, state: State, extra: Sequence[str]) -> None:
        if self._run is not None:
            raise MachineError(f"{self._name} is on already ({self._state.value})")
        if self.hardware.firmware == "uefi" and not UEFI_CODE.exists():
            raise MachineError(f"{UEFI_CODE} is missing: install the package ovmf")
        self._monitor_path.unlink(missing_ok=True)
        errors = self._directory / "qemu.log"
        with self.console.open("a", encoding="utf-8") as console:
            console.write(f"--- power on: {'rescue system' if state is State.RESCUE else 'booting the first disk'}\n")
        with errors.open("ab") as log:
            process = subprocess.Popen(
                self._words(extra), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        current = Run(process)
        try:
            self._note(process)
            if self._leases:
                current.dhcp = self._lease()
            self._run, self._state = current, state
            threading.Thread(target=self._watch, args=(current,), name=f"watch-{self._name}", daemon=True).start()
            # Answers once the machine is built and a snapshot, if any, is loaded.
            with self._monitor(current) as monitor:
                monitor.execute("query-status")
        except MachineError as error:
            self._cut(current)
            said = errors.read_text(encoding="utf-8", errors="replace")[-CONSOLE_TAIL:].strip()
            raise MachineError(f"{self._name} does not start: {error}; QEMU said: {said or 'nothing'}") from error

    def _note(self, process: subprocess.Popen[bytes]) -> None:
        identity = identify(process.pid)
        if identity is None:
            raise MachineError("it ended at once")
        self._ledger.process(identity)

    def _lease(self) -> subprocess.Popen[bytes]:
        """Start the platform's DHCP server for this one machine."""
        port = self._network.port(self._name)
        leases = self._directory / "dhcp.leases"
        leases.touch()
        configuration = self._directory / "dhcp.conf"
        configuration.write_text(
            f"start {port.addresses[0]}\nend {port.addresses[0]}\ninterface {port.bridge}\nlease_file {leases}\n"
            f"pidfile {self._directory}/dhcp.pid\nstatic_lease {port.guest_mac} {port.addresses[0]}\n"
            f"option subnet 255.255.255.0\noption router {port.gateway}\noption lease {LEASE}\n",
            encoding="ascii",
        )
        with (self._directory / "dhcp.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{port.namespace}", "busybox", "udhcpd", "-f", str(configuration)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._note(process)
        return process

    def _monitor(self, current: Run) -> Monitor:
        return Monitor(self._monitor_path, lambda: current.process.poll() is None, MONITOR_TIMEOUT)

    def _watch(self, current: Run) -> None:
        current.process.wait()
        if current.dhcp is not None:
            current.dhcp.kill()
            current.dhcp.wait()
        with self._changed:
            if self._run is current:
                self._run, self._state = None, State.OFF
            self._changed.notify_all()
        if not self._stopping:
            self._on_power_off(self._name)

    def _cut(self, current: Run) -> None:
        """End QEMU. Told to end it closes the disks' files properly; for the guest it is a power cut all the same."""
        stopping, self._stopping = self._stopping, True
        try:
            current.process.terminate()
            with suppress(MachineError):
                self._wait_off(current, KILL_TIMEOUT)
                return
            current.process.kill()
            self._wait_off(current, KILL_TIMEOUT)
        finally:
            self._stopping = stopping

    def _wait_off(self, current: Run, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._run is not current, timeout):
                raise MachineError(f"{self._name} did not power off within {timeout:g} s\n{self.tail()}")


def wait_for(machine: QemuMachine, condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Poll ``condition``; LabError, with the end of the console, when it does not come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if machine.state is State.OFF or time.monotonic() > deadline:
            how = "powered off" if machine.state is State.OFF else f"{what}: not within {timeout:g} s"
            raise LabError(f"{machine.name} {how}. The end of its console:\n{machine.tail()}", "See its console")
        time.sleep(0.2)
