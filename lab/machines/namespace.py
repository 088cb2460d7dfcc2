# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines made of namespaces: loop disks that hold a filesystem directly, and processes of their own.

The kernel, its clock and its memory are the host's. Everything else a migration touches is the
machine's own: disks, mounts, processes, host name, network, services.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import loopdisk
from lab.errors import LabError
from lab.freezing import freeze, parse_mountinfo, thaw
from lab.ledger import Ledger
from lab.loopdisk import LoopDevice
from lab.machines.devices import Disk
from lab.machines.powered import PoweredMachine
from lab.machines.protocol import MachineDisk, MachineError, Platform, State
from lab.network import Network
from lab.processes import identify

REPOSITORY = Path(__file__).resolve().parents[2]
BOOT_TIMEOUT = 60.0
STOP_TIMEOUT = 90.0
SUPERVISOR_PATIENCE = 30.0


def device_cgroup_root() -> Path | None:
    """Return where the device controller (cgroup v1) is mounted, or None where there is none."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, target, kind, options = line.split()[:4]
        if kind == "cgroup" and "devices" in options.split(","):
            return Path(target)
    return None


@dataclass
class Run:
    """One supervisor and what it has reported."""

    process: subprocess.Popen[bytes]
    loops: dict[str, LoopDevice]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False


class NamespaceMachine(PoweredMachine):
    """A machine of namespaces; see Machine for what its calls mean."""

    def __init__(
        self,
        name: str,
        disks: list[MachineDisk],
        *,
        platform: Platform,
        directory: Path,
        base_root: Path,
        network: Network,
        ledger: Ledger,
        on_power_off: Callable[[str], None],
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
        self._base_root = base_root
        self._run: Run | None = None
        self._staging = directory / "root"
        self._staging.mkdir(mode=0o700, exist_ok=True)

    @property
    def root(self) -> Path | None:
        """Where the machine's root directory can be seen from the host; None while it is off."""
        run = self._run
        pids = [] if run is None else [event["pid"] for event in run.events if event["event"] == "up"]
        return Path(f"/proc/{pids[0]}/root") if pids else None

    def start(self) -> None:
        """Boot what is on the first disk."""
        with self._calls:
            self._power_on(State.RUNNING, None)

    def rescue(self, username: str, password: str) -> None:
        """Boot the RAM-only rescue system."""
        with self._calls:
            self._power_on(
                State.RESCUE,
                {"base_root": str(self._base_root), "username": username, "password": password},
            )

    def stop(self, *, hard: bool) -> None:
        """Shut the guest down, or cut its power. A machine that is off stays off."""
        with self._calls:
            run = self._run
            if run is None:
                return
            self._stopping = True
            try:
                self._send(run, {"command": "cut" if hard else "shutdown"})
                self._wait(lambda: self._run is not run, STOP_TIMEOUT, "did not power off")
            finally:
                self._stopping = False

    def attach(self, disk: MachineDisk) -> None:
        """Add a disk."""
        with self._calls:
            if any(known.serial == disk.serial for known in self._disks):
                return
            if self._run is not None:
                name = self._free_name()
                slot = self._plug(self._run, name, disk)
                self._send(self._run, {"command": "attach", "slot": slot})
                self._await_event(self._run, name, ("attached",))
            self._disks.append(disk)

    def detach(self, serial: str) -> None:
        """Take a disk out."""
        with self._calls:
            disk = next((known for known in self._disks if known.serial == serial), None)
            if disk is None:
                return
            run = self._run
            if run is not None:
                name = next(name for name, loop in run.loops.items() if loop.backing_file == str(disk.file))
                self._send(run, {"command": "detach", "name": name})
                event = self._await_event(run, name, ("detached", "refused"))
                if event["event"] == "refused":
                    raise MachineError(f"{self.name}: disk {serial} cannot be taken out: {event['reason']}")
                loopdisk.detach(run.loops.pop(name))
            self._disks.remove(disk)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Freeze the guest's filesystems for the length of the block; what they had not written yet is written."""
        with self._calls, ExitStack() as stack:
            if self._run is not None:
                for fd in self._filesystems(self._run, stack):
                    freeze(fd)
                    stack.callback(thaw, fd)
            yield

    def _filesystems(self, run: Run, stack: ExitStack) -> Iterator[int]:
        """Open each filesystem on the machine's disks, the ones that are mounted on others first."""
        root = self.root
        if root is None:
            return
        mounts = parse_mountinfo((root.parent / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
        mountpoints = {item.source: item.mountpoint for item in mounts if not item.read_only}
        for name in reversed(run.loops):
            if f"/dev/{name}" in mountpoints:
                path = root / mountpoints[f"/dev/{name}"].lstrip("/")
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                yield fd

    def _power_on(self, state: State, rescue: dict[str, str] | None) -> None:
        if self._run is not None:
            raise MachineError(f"{self.name} is on already ({self._state.value})")
        with self.console.open("a", encoding="utf-8") as console:
            console.write(f"--- power on: {'rescue system' if rescue else 'booting the first disk'}\n")
            console.flush()
            process = subprocess.Popen(
                # The name is for whoever reads the list of processes.
                [sys.executable, "-m", "lab.machines.supervisor", self._network.port(self.name).namespace],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
            )
        run = Run(process, {})
        try:
            identity = identify(process.pid)
            if identity is None:
                raise MachineError(f"{self.name}: its supervisor ended at once")
            self._ledger.process(identity)
            config = {
                "netns": self._network.port(self.name).namespace,
                "cgroup": self._cgroup(),
                "staging": str(self._staging),
                "vendor": self._platform.vendor,
                "product": self._platform.product,
                "rescue": rescue,
                "shared_usr": str(self._base_root / "usr"),
                "disks": [self._plug(run, self._disk_name(i), disk) for i, disk in enumerate(self._disks)],
            }
            self._network.address(self._network.port(self.name))
            self._run, self._state = run, state
            threading.Thread(target=self._watch, args=(run,), name=f"watch-{self.name}", daemon=True).start()
            self._send(run, config)
        except BaseException:
            # The supervisor ends when its input does; it has not been told to do anything yet.
            self._give_back(run)
            raise
        self._wait(lambda: run.ended or self._seen(run, "up"), BOOT_TIMEOUT, "did not boot")
        if not self._seen(run, "up"):
            reasons = [event["reason"] for event in run.events if event["event"] == "failed"]
            raise MachineError(f"{self.name} does not boot: {'; '.join(reasons) or 'see its console'}")

    def _cgroup(self) -> str | None:
        root = device_cgroup_root()
        if root is None:
            return None
        path = str(root / self._network.port(self.name).namespace)
        self._ledger.cgroup(path)
        return path

    def _disk_name(self, index: int) -> str:
        return f"{self._platform.disk_prefix}{chr(ord('a') + index)}"

    def _free_name(self) -> str:
        used = set() if self._run is None else set(self._run.loops)
        return next(name for name in map(self._disk_name, range(26)) if name not in used)

    def _plug(self, run: Run, name: str, disk: MachineDisk) -> dict[str, Any]:
        loop = run.loops[name] = loopdisk.attach(disk.file)
        found = loopdisk.probe(loop.path)
        seen = Disk(name, loop.number, disk.file.stat().st_size, disk.serial, found.filesystem, found.uuid)
        return {"loop": loop.path, "disk": asdict(seen)}

    def _send(self, run: Run, message: dict[str, Any]) -> None:
        assert run.process.stdin is not None
        try:
            run.process.stdin.write(json.dumps(message).encode() + b"\n")
            run.process.stdin.flush()
        except BrokenPipeError as error:
            raise MachineError(f"{self.name}: its supervisor has ended; see its console") from error

    def _watch(self, run: Run) -> None:
        assert run.process.stdout is not None
        for line in run.process.stdout:
            with self._changed:
                run.events.append(json.loads(line))
                self._changed.notify_all()
        off = [event["cause"] for event in run.events if event["event"] == "off"]
        self._give_back(run)
        if self._stopping or not self._seen(run, "up"):
            return
        if off == ["reboot"]:
            try:
                self.start()
            except (MachineError, LabError) as error:
                self._say(str(error))
        if self._state is State.OFF:
            self._on_power_off(self.name)

    def _give_back(self, run: Run) -> None:
        """Wait for the supervisor and detach the disks; the machine is off when this returns."""
        for stream in (run.process.stdin, run.process.stdout):
            if stream is not None:
                stream.close()
        try:
            run.process.wait(timeout=SUPERVISOR_PATIENCE)
            for loop in run.loops.values():
                loopdisk.detach(loop)
            self._remove_cgroup()
        except (LabError, OSError, subprocess.TimeoutExpired) as error:
            # Nobody waits for this thread; what could not be given back is swept away with the lab.
            self._say(f"could not give everything back: {error}")
        finally:
            with self._changed:
                run.ended = True
                self._run, self._state = None, State.OFF
                self._changed.notify_all()

    def _remove_cgroup(self) -> None:
        root = device_cgroup_root()
        if root is not None:
            with suppress(FileNotFoundError):
                (root / self._network.port(self.name).namespace).rmdir()

    def _say(self, text: str) -> None:
        with self.console.open("a", encoding="utf-8") as console:
            console.write(f"{text}\n")

    def _seen(self, run: Run, event: str) -> bool:
        return any(seen["event"] == event for seen in run.events)

    def _await_event(self, run: Run, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def arrived() -> bool:
            found[:] = [event for event in run.events if event["event"] in kinds and event.get("name") == name]
            return bool(found) or run.ended

        self._wait(arrived, BOOT_TIMEOUT, f"did not answer about {name}")
        if not found:
            raise MachineError(f"{self.name} powered off while {name} was changed")
        event = found[-1]
        run.events.remove(event)
        return event

    def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise MachineError(f"{self.name} {what} within {timeout:g} s; see its console: {self.console}")
