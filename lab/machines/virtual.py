# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What machines with a kernel of their own share, whatever runs that kernel: power, console, rescue system, DHCP."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.command import run
from lab.errors import LabError
from lab.guestimage import GuestImage, pack
from lab.ledger import Ledger
from lab.machines.powered import PoweredMachine
from lab.machines.protocol import MachineDisk, MachineError, Platform, State
from lab.network import Network
from lab.processes import identify

# A guest shuts down in 1 to 60 seconds, depending on what else the host does.
STOP_TIMEOUT = 180.0
KILL_TIMEOUT = 30.0
REPOSITORY = Path(__file__).resolve().parents[2]
CONSOLE_TAIL = 3000
LEASE = 864000
RESCUE_WORDS = "net.ifnames=0 quiet panic=10 mitigations=off"


@dataclass
class Run:
    """The process that is the machine, and the servers beside it that end with it."""

    process: subprocess.Popen[bytes]
    beside: list[subprocess.Popen[bytes]]


class VirtualMachine(PoweredMachine):
    """A machine with a kernel of its own; see Machine for what its calls mean.

    ``start`` returns when the firmware runs, or the kernel where there is no firmware.
    """

    def __init__(
        self,
        name: str,
        disks: Sequence[MachineDisk],
        *,
        platform: Platform,
        directory: Path,
        image: GuestImage,
        network: Network,
        ledger: Ledger,
        on_power_off: Callable[[str], None],
        leases: bool = False,
    ) -> None:
        super().__init__(
            name,
            disks,
            platform=platform,
            directory=directory,
            network=network,
            ledger=ledger,
            on_power_off=on_power_off,
        )
        self._image = image
        self._leases = leases
        self._run: Run | None = None

    @abstractmethod
    def rescue(self, username: str, password: str) -> None:
        """Boot the RAM-only rescue system with every disk attached and none mounted."""

    @abstractmethod
    def _await_ready(self, current: Run) -> None:
        """Return once the machine is built; MachineError when it never will be."""

    @abstractmethod
    def _press_power_button(self, current: Run) -> None:
        """Ask the guest to shut down."""

    @abstractmethod
    def _cut_power(self, current: Run) -> None:
        """End the machine's process; what the guest has written to its disks stays, nothing else."""

    @property
    def root(self) -> Path | None:
        """Nothing of a virtual machine's files can be seen from the host."""
        return None

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
                    self._press_power_button(current)
                    self._wait_off(current, STOP_TIMEOUT)
            finally:
                self._stopping = False

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

    @abstractmethod
    def still(self) -> AbstractContextManager[None]:
        """Nothing changes on the disks for the length of the block, as a storage sees to when it takes a snapshot."""

    def tail(self) -> str:
        """Return the end of what the machine said on its console, in one piece of plain text."""
        text = self.console.read_bytes()[-CONSOLE_TAIL:].decode("utf-8", "replace")
        return re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1bc|\r", "", text)

    def _only_off(self, what: str) -> None:
        if self._run is not None:
            raise MachineError(f"{self._name} is on, and can {what} only while it is off")

    def _write_initramfs(self, initramfs: Path, parts: Sequence[Path], username: str, password: str) -> None:
        """``parts`` with the one account laid over them: a kernel unpacks one archive after the other."""
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
        self._join(initramfs, parts)
        pack(over, initramfs)
        shutil.rmtree(over)

    def _join(self, initramfs: Path, parts: Sequence[Path]) -> None:
        initramfs.touch(mode=0o600)
        with initramfs.open("wb") as archive:
            for part in parts:
                with part.open("rb") as base:
                    shutil.copyfileobj(base, archive, 1 << 20)

    @property
    def _inside(self) -> list[str]:
        """What puts a program into the machine's namespace.

        nsenter and not `ip netns exec`, whose mount namespace would hold every mount of this moment.
        """
        return ["nsenter", f"--net=/run/netns/{self._network.port(self._name).namespace}"]

    def _power_on(
        self,
        state: State,
        words: Sequence[str],
        beside: Sequence[Sequence[str]] = (),
        *,
        output: Path | None = None,
    ) -> None:
        """Run ``words`` as the machine, with ``beside`` started before it and ended after it; ``output`` is its own."""
        if self._run is not None:
            raise MachineError(f"{self._name} is on already ({self._state.value})")
        errors = self._directory / "machine.log"
        with self.console.open("a", encoding="utf-8") as console:
            console.write(f"--- power on: {'rescue system' if state is State.RESCUE else 'booting the first disk'}\n")
        helpers: list[subprocess.Popen[bytes]] = []
        try:
            for each in [*beside, *([self._lease()] if self._leases else [])]:
                helpers.append(self._spawn(each, errors))
            current = Run(self._spawn(words, output or errors), helpers)
        except BaseException:
            end(helpers)
            raise
        self._run, self._state = current, state
        threading.Thread(target=self._watch, args=(current,), name=f"watch-{self._name}", daemon=True).start()
        try:
            self._await_ready(current)
        except MachineError as error:
            self._cut(current)
            said = errors.read_text(encoding="utf-8", errors="replace")[-CONSOLE_TAIL:].strip()
            raise MachineError(f"{self._name} does not start: {error}; it said: {said or 'nothing'}") from error

    def _spawn(self, words: Sequence[str], errors: Path) -> subprocess.Popen[bytes]:
        with errors.open("ab") as log:
            process = subprocess.Popen(
                words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        identity = identify(process.pid)
        if identity is None:
            raise MachineError(f"{self._name} does not start: {words[0]} ended at once; see {errors}")
        self._ledger.process(identity)
        return process

    def _lease(self) -> list[str]:
        """Return the words of the platform's DHCP server for this one machine."""
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
        return [*self._inside, "busybox", "udhcpd", "-f", str(configuration)]

    def _watch(self, current: Run) -> None:
        current.process.wait()
        end(current.beside)
        with self._changed:
            if self._run is current:
                self._run, self._state = None, State.OFF
            self._changed.notify_all()
        if not self._stopping:
            self._on_power_off(self._name)

    def _cut(self, current: Run) -> None:
        stopping, self._stopping = self._stopping, True
        try:
            self._cut_power(current)
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


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill these and wait for them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def wait_for(machine: VirtualMachine, condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Poll ``condition``; LabError, with the end of the console, when it does not come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if machine.state is State.OFF or time.monotonic() > deadline:
            how = "powered off" if machine.state is State.OFF else f"{what}: not within {timeout:g} s"
            raise LabError(f"{machine.name} {how}. The end of its console:\n{machine.tail()}", "See its console")
        time.sleep(0.2)
