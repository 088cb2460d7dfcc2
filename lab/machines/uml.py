# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines with a kernel of their own at the host's speed: User-mode Linux, which has neither firmware nor hardware.

Its disks are paravirtual and have serial numbers (lab.machines.vhostdisk), with partitions, volume groups and whatever
filesystem the kernel knows. What boots them is not a boot loader: that is QEMU's part.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.machines.protocol import MachineError, State
from lab.machines.virtual import RESCUE_WORDS, Run, VirtualMachine
from lab.network import TAP
from lab.umlkernel import BOOT, UmlKernel

PROGRAMS = {"linux.uml": "user-mode-linux"}
MEMORY_MIB = 1024
BLOCK_DEVICE = 2  # Virtual I/O Device (VIRTIO) 1.1, 5.
READY_TIMEOUT = 60.0
CONSOLE_TIMEOUT = 30.0
# arch/um/drivers/mconsole.h
MAGIC, VERSION, MAX_DATA = 0xCAFEBABE, 2, 512


class UmlMachine(VirtualMachine):
    """A machine of User-mode Linux; see Machine for what its calls mean."""

    def __init__(self, *positional: Any, kernel: UmlKernel, **shared: Any) -> None:
        super().__init__(*positional, **shared)
        self._kernel = kernel

    def start(self) -> None:
        """Start the system on the first disk that has one."""
        with self._calls:
            parts = [self._image.rescue_initramfs, self._kernel.supplement]
            initramfs = self._directory / "boot.cpio"
            # Stays, as the rescue system's does: a kernel that restarts reads it again.
            self._join(initramfs, parts)
            self._run_kernel(State.RUNNING, initramfs, [f"rdinit=/{BOOT}", "net.ifnames=0", "quiet"])

    def rescue(self, username: str, password: str) -> None:
        """Boot the rescue system from RAM."""
        with self._calls:
            initramfs = self._directory / "rescue.cpio"
            parts = [self._image.rescue_initramfs, self._kernel.supplement]
            self._write_initramfs(initramfs, parts, username, password)
            self._run_kernel(State.RESCUE, initramfs, RESCUE_WORDS.split())

    @contextmanager
    def still(self) -> Iterator[None]:
        """Pause the kernel for the length of the block."""
        with self._calls:
            if self._run is None:
                yield
                return
            self._ask("stop")
            try:
                yield
            finally:
                self._ask("go")

    def _run_kernel(self, state: State, initramfs: Path, words: Sequence[str]) -> None:
        sockets = [self._directory / f"d{number}" for number in range(len(self._disks))]
        server = [sys.executable, "-m", "lab.machines.vhostdisk"]
        for path, disk in zip(sockets, self._disks, strict=True):
            path.unlink(missing_ok=True)
            server.append(f"{path}={disk.file}={disk.serial}")
        mac = self._network.port(self._name).guest_mac
        kernel = [
            *self._inside,
            # It keeps its memory in a file, and its processes are children that outlive it: these end with their first.
            "env", f"TMPDIR={self._memory_directory()}",
            "unshare", "--pid", "--mount-proc", "--fork", "--kill-child", str(self._kernel.program),
            f"mem={MEMORY_MIB}M", f"initrd={initramfs}", f"eth0=tuntap,{TAP},{mac}",
            "con=null", "con0=null,fd:1", "console=tty0", f"uml_dir={self._directory}/", "umid=u",
            *(f"virtio_uml.device={path}:{BLOCK_DEVICE}" for path in sockets),
            *words,
        ]  # fmt: skip
        self._power_on(state, kernel, [server], output=self.console)

    def _memory_directory(self) -> Path:
        """Where the guest's memory is a file: in RAM if there is room."""
        shared = Path("/dev/shm")
        room = os.statvfs(shared) if shared.is_dir() else None
        return shared if room and room.f_bavail * room.f_frsize > MEMORY_MIB << 21 else self._directory

    def _await_ready(self, current: Run) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            try:
                self._ask("version")
                return
            except MachineError:
                if current.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _press_power_button(self, current: Run) -> None:
        # There is no button; the guests take control-alt-delete for one.
        self._ask("cad")

    def _cut_power(self, current: Run) -> None:
        current.process.kill()

    def _ask(self, command: str) -> str:
        """Have the kernel's own console do something (Documentation/virt/uml); return what it answers."""
        own = self._directory / "c"
        own.unlink(missing_ok=True)
        request = struct.pack(f"<III{MAX_DATA}s", MAGIC, VERSION, len(command), command.encode())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
            console.settimeout(CONSOLE_TIMEOUT)
            console.bind(str(own))
            said = ""
            try:
                console.sendto(request, str(self._directory / "u/mconsole"))
                more = True
                while more:
                    failed, more, length = struct.unpack_from("<III", answer := console.recv(12 + MAX_DATA))
                    said += answer[12 : 12 + length].decode("utf-8", "replace").rstrip("\0")
            except OSError as error:
                raise MachineError(f"the kernel of {self._name} does not answer: {error}") from error
            finally:
                own.unlink(missing_ok=True)
        if failed:
            raise MachineError(f"the kernel of {self._name} refuses {command}: {said}")
        return said
