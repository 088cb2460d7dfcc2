# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is compared, and how it is measured: rsync over SSH, nbdcopy, and our two agents, across one link."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from block_devices import run
from loop_pair import Loop, Pair, wait_for
from own_mounts import enter_own_mounts
from veth_link import TARGET, Link

# Whatever is waited for may take this long, in seconds.
PATIENCE = 900.0
_NBD_PORT = "10809"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measurement:
    """One run: seconds, bytes that left each side (Ethernet headers included), CPU seconds of each side."""

    wall: float
    out: int
    back: int
    cpu_source: float
    cpu_target: float

    @property
    def wire(self) -> int:
        return self.out + self.back


class Meter:
    """Measures between `begin` and `end` what passes the link, and what the processes of each side use."""

    def __init__(self, link: Link, source: list[int], target: list[int]) -> None:
        self._link = link
        self._pids = (source, target)
        self._begin = (0.0, (0, 0), (0.0, 0.0))

    def begin(self) -> None:
        self._begin = self._look()

    def end(self, *, wall: float | None = None, cpu_source: float = 0.0) -> Measurement:
        """`cpu_source` is what processes used that have ended since; `wall` replaces the time since `begin`."""
        then, passed, cpu = self._begin
        now, passed_now, cpu_now = self._look()
        return Measurement(
            wall=now - then if wall is None else wall,
            out=passed_now[0] - passed[0],
            back=passed_now[1] - passed[1],
            cpu_source=cpu_now[0] - cpu[0] + cpu_source,
            cpu_target=cpu_now[1] - cpu[1],
        )

    def _look(self) -> tuple[float, tuple[int, int], tuple[float, float]]:
        source, target = (sum(cpu_seconds(pid) for pid in pids) for pids in self._pids)
        return time.monotonic(), self._link.passed(), (source, target)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, those that run and those that ended and were waited for."""
    fields = times(pid)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(fields) + sum(cpu_seconds(int(child)) for child in children)


@contextlib.contextmanager
def mounted(device: Path, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir(exist_ok=True)
    run("mount", device, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


class Rsync:
    """rsync of a tree over SSH; the server's programs are those of the lab's base root, none is installed here."""

    def __init__(self, link: Link, scratch: Path, *, compress: bool) -> None:
        self.name = "rsync, zstd" if compress else "rsync"
        self._link = link
        self._scratch = scratch
        self._compress = ["--compress", "--compress-choice=zstd", "--compress-level=1"] if compress else []

    def copy(self, source: Path, target: Path) -> Measurement:
        """Make the tree `target` equal to `source` and have it on its disk."""
        with ssh_server(self._link, self._scratch) as (server, shell):
            meter = Meter(self._link, [], [server])
            command = ["rsync", "-aHAXS", "--numeric-ids", "--delete", *self._compress, "--rsh", shell]
            command += [f"{source}/", f"{TARGET}:{target}/"]
            meter.begin()
            cpu = run_measured(self._link.inside(self._link.source, *command))
            run("sync", "--file-system", target)
            return meter.end(cpu_source=cpu)


@contextlib.contextmanager
def ssh_server(link: Link, scratch: Path) -> Iterator[tuple[int, str]]:
    """An SSH server at the target's end: its process, and the client's command line without the host."""
    for name in ("host", "user"):
        if not (scratch / name).exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", scratch / name)
    (scratch / "known").write_text(f"{TARGET} {(scratch / 'host.pub').read_text()}")
    (scratch / "sshd_config").write_text(
        f"ListenAddress {TARGET}\nHostKey {scratch}/host\nAuthorizedKeysFile {scratch}/user.pub\nStrictModes no\n"
        "PidFile none\nUsePAM no\nPermitRootLogin yes\nLogLevel ERROR\n"
    )
    server = subprocess.Popen(link.inside(link.target, "/usr/sbin/sshd", "-D", "-e", "-f", scratch / "sshd_config"))
    shell = f"ssh -F none -i {scratch}/user -o UserKnownHostsFile={scratch}/known -o LogLevel=ERROR"
    login = [*shell.split(), TARGET, "true"]
    try:
        wait_for(lambda: subprocess.run(link.inside(link.source, *login), capture_output=True).returncode == 0, "SSH")
        yield server.pid, shell
    finally:
        server.terminate()
        server.wait()


class NbdCopy:
    """nbdcopy of a disk to an nbdkit server: no compression, no encryption, no check."""

    name = "nbdcopy"

    def __init__(self, link: Link) -> None:
        self._link = link

    def copy(self, source: Path, target: Path) -> Measurement:
        """Make the device `target` equal to the device `source`."""
        serve = ["nbdkit", "--foreground", "--ipaddr", TARGET, "--port", _NBD_PORT, "file", target]
        server = subprocess.Popen(self._link.inside(self._link.target, *serve))
        address = f"nbd://{TARGET}:{_NBD_PORT}"
        try:
            ask = self._link.inside(self._link.source, "nbdinfo", "--size", address)
            wait_for(lambda: subprocess.run(ask, capture_output=True).returncode == 0, "nbdkit")
            meter = Meter(self._link, [], [server.pid])
            meter.begin()
            cpu = run_measured(self._link.inside(self._link.source, "nbdcopy", "--flush", source, address))
            return meter.end(cpu_source=cpu)
        finally:
            server.terminate()
            server.wait()


class Ours:
    """Two agents, TLS and verification included."""

    name = "fleetlift"

    def __init__(self, link: Link, root: Path, source: Loop, target: Loop) -> None:
        self.pair = Pair(root, [(source, target)], 4443, tracking=True)
        self._link = link
        # The seconds of the last cutover's parts.
        self.split = ""
        self.pair.sender.interpreter = link.inside(link.source, sys.executable)
        self.pair.receiver.interpreter = link.inside(link.target, sys.executable)
        self.pair.sender.write_config(peer={"host": TARGET, "port": 4443}, peer_timeout=60)
        self.pair.receiver.write_config(listen={"host": TARGET, "port": 4443}, peer_timeout=60)

    @contextlib.contextmanager
    def running(self) -> Iterator[Meter]:
        self.pair.start()
        try:
            yield Meter(self._link, [self.pair.sender.pid], [self.pair.receiver.pid])
        finally:
            self.pair.sender.ctl("shutdown")
            self.pair.receiver.ctl("shutdown")
            for agent in (self.pair.sender, self.pair.receiver):
                wait_for(lambda agent=agent: not agent.alive(), "the agents end")  # type: ignore[misc]

    def replicate(self, meter: Meter) -> Measurement:
        """Until in sync: everything on the target, flushed, read back and compared."""
        meter.begin()
        self.pair.sender.ctl("replicate")
        self.pair.sender.phase("in_sync", seconds=PATIENCE)
        return meter.end()

    def cut_over(self, meter: Meter, hook: str) -> Measurement:
        """The downtime of a cutover whose hook makes the disk dirty, without the hook's own time."""
        begun = ended_children(self.pair.sender.pid)
        meter.begin()
        self.pair.sender.ctl("cutover", services=[], freeze=True, pre_freeze=[hook], hook_timeout=300, hold_timeout=600)
        record = self.pair.sender.cutover_phase("prepared", "aborted", seconds=PATIENCE)
        assert record["phase"] == "prepared", record
        parts = ("stop_services", "flush", "freeze", "drain", "send", "verify")
        measured = meter.end(wall=sum(record["timings"][part] for part in parts))
        self.split = ", ".join(f"{part} {record['timings'][part]:.2f}" for part in parts)
        hooked = ended_children(self.pair.sender.pid) - begun
        return replace(measured, cpu_source=measured.cpu_source - hooked)

    def abort(self) -> None:
        self.pair.sender.ctl("abort")
        self.pair.sender.phase("in_sync", seconds=PATIENCE)


def ended_children(pid: int) -> float:
    """User and system time of the children of a process that ended and were waited for."""
    return sum(times(pid)[2:])


def times(pid: int) -> list[float]:
    """Seconds of a process in user mode and in the kernel, and the same of its children that were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(value) / _TICKS for value in fields[11:15]]


def run_measured(command: list[str]) -> float:
    """Run a command that must succeed; returns the CPU seconds of it and its children."""
    process = subprocess.Popen(command)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def loop(path: Path, size: int, origin: Path | None = None) -> Iterator[Loop]:
    """A loop device over a new file, which begins as a copy of `origin`."""
    made = Loop(path, size)
    try:
        if origin is not None:
            made.detach()
            run("cp", "--sparse=always", origin, path)
            made.device = Path(run("losetup", "--find", "--show", path))
        yield made
    finally:
        made.detach()
        path.unlink()


def enter_own_world(scratch: Path, base_root: Path) -> None:
    """Into a mount namespace with the SSH server of the lab's base root laid under /usr.

    Nothing of it is seen from outside, and no mount of ours is held by anybody else.
    """
    enter_own_mounts()
    # For the names of network namespaces and what the SSH server wants to find there.
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/sshd").mkdir()
    run("mount", "-t", "overlay", "-o", f"lowerdir=/usr:{base_root}/usr", "overlay", "/usr")
    users = Path("/etc/passwd").read_text()
    if "\nsshd:" not in users:
        (scratch / "passwd").write_text(f"{users}sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
        run("mount", "--bind", scratch / "passwd", "/etc/passwd")
