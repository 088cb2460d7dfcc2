# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that holds one running namespace machine, from power on to power off.

It is started by the lab's daemon, told on standard input what to boot (one JSON line) and later what to
do, and reports on standard output (JSON lines: up, failed, off). End of input means that the daemon is
gone: the machine's power is cut. Process 1 of the machine is its only child.

Commands: {"command": "shutdown"|"reboot"|"cut"}, {"command": "attach", "slot": {…}},
{"command": "detach", "name": "vdb"}.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import namespaces as ns
from lab.freezing import CAN_SHUT_DOWN, MountEntry, cut_power, parse_mountinfo, thaw
from lab.loopdisk import wait_released
from lab.machines import devices, init
from lab.machines.devices import Disk

# How long a guest may take to shut down before its power is cut, in seconds.
SHUTDOWN_PATIENCE = 30.0


@dataclass(frozen=True)
class Slot:
    """A disk to plug in: the loop device that carries it, and how the guest sees it."""

    loop: str
    disk: Disk

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Slot:
        return cls(values["loop"], Disk.from_dict(values["disk"]))


def join_cgroup(path: str, disks: list[Disk]) -> None:
    """Make the device control group, allow what the machine may open, and enter it."""
    directory = Path(path)
    directory.mkdir(exist_ok=True)
    (directory / "devices.deny").write_text("a", encoding="ascii")
    for rule in devices.device_rules(disks):
        (directory / "devices.allow").write_text(rule, encoding="ascii")
    (directory / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


class Supervisor:
    """One machine's run."""

    def __init__(self, config: dict[str, Any]) -> None:
        slots = [Slot.from_dict(values) for values in config["disks"]]
        self._slots = {slot.disk.name: slot for slot in slots}
        self._cgroup: str | None = config["cgroup"]
        if self._cgroup is not None:
            join_cgroup(self._cgroup, [slot.disk for slot in slots])
        with open(f"/run/netns/{config['netns']}", "rb") as netns:
            ns.setns(netns.fileno(), ns.CLONE_NEWNET)
        self._boot = init.Boot(
            staging=config["staging"],
            disks=[slot.disk for slot in slots],
            vendor=config["vendor"],
            product=config["product"],
            rescue=None if config["rescue"] is None else init.Rescue(**config["rescue"]),
            shared_usr=config["shared_usr"],
        )
        self._report = init.reporter(1)
        self._host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._host_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        self._machine_mounts = -1
        self._pid = 0
        self._deadline: float | None = None
        self._buffers: dict[int, bytes] = {}

    def run(self) -> None:
        """Boot, obey until process 1 ends, and clear up."""
        life = self._fork_init()
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(life, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self._patience()):
                    data = os.read(key.fd, 65536)
                    if key.fd == life:
                        self._relay(data)
                        if not data:
                            self._clear_up()
                            return
                    elif not data:
                        selector.unregister(0)
                        self._cut()
                    else:
                        for message in self._lines(0, data):
                            self._obey(json.loads(message))
                if self._deadline is not None and time.monotonic() > self._deadline:
                    print("the guest did not shut down in time: cutting its power", file=sys.stderr, flush=True)
                    self._cut()

    def _patience(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _fork_init(self) -> int:
        life, life_end = os.pipe()
        ns.unshare(ns.CLONE_NEWPID)
        self._pid = os.fork()
        if self._pid == 0:
            if os.getpid() != 1:
                os._exit(init.EXIT_FAILED)
            # Process 1 keeps nothing of its parent's but the console and the pipe whose end tells of its own.
            os.dup2(2, 1)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            keep = {0, 1, 2, life_end}
            for fd in (int(name) for name in os.listdir("/proc/self/fd")):
                if fd not in keep:
                    try:
                        os.close(fd)
                    except OSError:  # The descriptor of the listing itself.
                        continue
            init.run(self._boot, init.reporter(life_end))
        os.close(life_end)
        return life

    def _lines(self, fd: int, data: bytes) -> list[bytes]:
        *lines, self._buffers[fd] = (self._buffers.get(fd, b"") + data).split(b"\n")
        return lines

    def _relay(self, data: bytes) -> None:
        for line in self._lines(-1, data):
            message = json.loads(line)
            if message["event"] == "up":
                self._machine_mounts = os.open(f"/proc/{self._pid}/ns/mnt", os.O_RDONLY)
                message["pid"] = self._pid
            self._report(message)

    def _obey(self, message: dict[str, Any]) -> None:
        command = message["command"]
        if command in ("shutdown", "reboot"):
            self._deadline = time.monotonic() + SHUTDOWN_PATIENCE
            os.kill(self._pid, signal.SIGUSR2 if command == "shutdown" else signal.SIGTERM)
        elif command == "cut":
            self._cut()
        elif command == "attach":
            self._attach(Slot.from_dict(message["slot"]))
        elif command == "detach":
            self._detach(message["name"])
        else:
            raise ValueError(f"unknown command {command!r}")

    def _cut(self) -> None:
        self._deadline = None
        self._in_machine(self._stop_filesystems)
        os.kill(self._pid, signal.SIGKILL)

    def _in_machine(self, action: Any) -> None:
        if self._machine_mounts == -1:
            return
        ns.setns(self._machine_mounts, ns.CLONE_NEWNS)
        try:
            action()
        finally:
            ns.setns(self._host_mounts, ns.CLONE_NEWNS)

    def _own_mounts(self) -> list[MountEntry]:
        fd = os.open("self/mountinfo", os.O_RDONLY, dir_fd=self._host_proc)
        with open(fd, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
        sources = {f"/dev/{name}" for name in self._slots}
        return [entry for entry in parse_mountinfo(text) if entry.source in sources]

    def _stop_filesystems(self) -> None:
        """Keep what is not on the disks yet from reaching them, and let go of tasks that wait for a thaw."""
        for entry in self._own_mounts():
            fd = os.open(entry.mountpoint, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if entry.filesystem in CAN_SHUT_DOWN and not entry.read_only:
                    cut_power(fd)
                if thaw(fd):
                    print(f"power off: {entry.mountpoint} was frozen", file=sys.stderr, flush=True)
            finally:
                os.close(fd)

    def _unmount_filesystems(self) -> None:
        for entry in reversed(self._own_mounts()):
            ns.unmount(entry.mountpoint, ns.MNT_DETACH)

    def _clear_up(self) -> None:
        self._in_machine(self._stop_filesystems)
        _, status = os.waitpid(self._pid, 0)
        self._in_machine(self._unmount_filesystems)
        if self._machine_mounts != -1:
            os.close(self._machine_mounts)
        for slot in self._slots.values():
            wait_released(slot.loop)
        self._report({"event": "off", "cause": cause_of(status)})

    def _attach(self, slot: Slot) -> None:
        disk = slot.disk
        self._slots[disk.name] = slot
        if self._cgroup is not None:
            (Path(self._cgroup) / "devices.allow").write_text(devices.disk_rule(disk.number), encoding="ascii")

        def plug() -> None:
            devices.add_disk_node(disk)
            devices.add_disk_entry(Path("/sys"), disk)

        self._in_machine(lambda: with_open_sys(plug))
        self._report({"event": "attached", "name": disk.name})

    def _detach(self, name: str) -> None:
        disk = self._slots[name].disk
        busy: list[str] = []
        self._in_machine(lambda: busy.extend(e.mountpoint for e in self._own_mounts() if e.source == f"/dev/{name}"))
        if busy:
            self._report({"event": "refused", "name": name, "reason": f"it is mounted on {busy[0]}"})
            return

        def unplug() -> None:
            devices.remove_disk_node(disk)
            devices.remove_disk_entry(Path("/sys"), disk)

        self._in_machine(lambda: with_open_sys(unplug))
        if self._cgroup is not None:
            (Path(self._cgroup) / "devices.deny").write_text(devices.disk_rule(disk.number), encoding="ascii")
        del self._slots[name]
        self._report({"event": "detached", "name": name})


def with_open_sys(action: Any) -> None:
    """Run ``action`` while the machine's /sys can be written."""
    devices.unseal_sys(Path("/sys"))
    try:
        action()
    finally:
        devices.seal_sys(Path("/sys"))


def cause_of(status: int) -> str:
    """Say why process 1 ended: "power_off", "reboot", "cut" or "failed"."""
    if os.WIFSIGNALED(status):
        causes = {signal.SIGINT: "power_off", signal.SIGHUP: "reboot"}
        return causes.get(signal.Signals(os.WTERMSIG(status)), "cut")
    return {init.EXIT_POWER_OFF: "power_off", init.EXIT_REBOOT: "reboot"}.get(os.WEXITSTATUS(status), "failed")


def main() -> None:
    """Read what to boot, and be its supervisor."""
    line = sys.stdin.buffer.readline()
    if line:
        Supervisor(json.loads(line)).run()


if __name__ == "__main__":
    main()
