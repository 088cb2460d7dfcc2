# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Process 1 of a namespace machine: mounts the machine's root, runs its services, shuts it down.

It starts in a process-id namespace of its own and ends the machine by ending: reboot(2) inside such a
namespace kills process 1 with SIGINT (power off) or SIGHUP (restart), pid_namespaces(7). It never
calls reboot(2) itself. After ``enter_root`` nothing of the host's files is left, so every module must
have been imported before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lab import namespaces as ns
from lab.machines import devices
from lab.machines.devices import Disk
from lab.machines.fstab import Mount, parse_fstab

EXIT_POWER_OFF = 0
EXIT_FAILED = 1
EXIT_REBOOT = 64
SIGNALS = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "linux",
    "RUNLEVEL": "2",
    "PREVLEVEL": "N",
    "LANG": "C.UTF-8",
}
# linux/capability.h: what could reach past the machine into the host's kernel.
DROPPED_CAPABILITIES = {
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_TIME": 25,
    "CAP_MKNOD": 27,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_SYSLOG": 34,
    "CAP_WAKE_ALARM": 35,
    "CAP_BLOCK_SUSPEND": 36,
}
# A disk with this file holds no /usr: its machine mounts the one that is shared.
LIGHT = "etc/lab-light"
RESCUE_SSHD = "PermitRootLogin yes\nPasswordAuthentication yes\nUseDNS no\n"


@dataclass(frozen=True)
class Rescue:
    """How the rescue system is made and entered."""

    base_root: str
    username: str
    password: str


@dataclass(frozen=True)
class Boot:
    """What process 1 is told."""

    staging: str
    disks: list[Disk]
    vendor: str
    product: str
    rescue: Rescue | None
    shared_usr: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Boot:
        rescue = values["rescue"]
        return cls(
            staging=values["staging"],
            disks=[Disk.from_dict(disk) for disk in values["disks"]],
            vendor=values["vendor"],
            product=values["product"],
            rescue=None if rescue is None else Rescue(**rescue),
            shared_usr=values["shared_usr"],
        )


class BootError(Exception):
    """The machine does not boot; the text says why."""


def run(boot: Boot, report: Callable[[dict[str, object]], None]) -> NoReturn:
    """Be process 1. ``report`` tells the supervisor that the machine is up, or why it is not."""
    code = EXIT_FAILED
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS)
        ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
        Path("/proc/self/comm").write_text("init", encoding="ascii")
        ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC | ns.CLONE_NEWCGROUP)
        ns.mount("none", "/", None, ns.MS_REC | ns.MS_PRIVATE)
        enter_root(boot)
        if boot.rescue is None:
            mount_filesystems(parse_fstab(Path("/etc/fstab").read_text(encoding="utf-8")), boot.disks)
        else:
            prepare_rescue(boot.rescue)
        drop_capabilities()
        services = Services()
        services.start()
        report({"event": "up"})
        code = services.supervise()
    except BootError as error:
        print(f"boot failed: {error}", flush=True)
        report({"event": "failed", "reason": str(error)})
    except Exception as error:  # noqa: BLE001 - process 1 has no caller: the console is where it can speak
        traceback.print_exc()
        report({"event": "failed", "reason": f"{type(error).__name__}: {error}"})
    finally:
        sys.stdout.flush()
        os._exit(code)


def enter_root(boot: Boot) -> None:
    """Make the machine's root directory and go there."""
    devices.build_dev(boot.disks)
    root = Path(boot.staging)
    if boot.rescue is None:
        mount_system_disk(boot.disks, root, boot.shared_usr)
    else:
        mount_rescue_root(boot.rescue, root)
    for name in ("dev", "proc", "sys", "run"):
        (root / name).mkdir(exist_ok=True)
    ns.mount("/dev", str(root / "dev"), None, ns.MS_MOVE)
    flags = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("proc", str(root / "proc"), "proc", flags)
    devices.build_sys(root / "sys", boot.disks, boot.vendor, boot.product)
    devices.mask_proc(root, boot.disks)
    devices.seal_sys(root / "sys")
    ns.mount("tmpfs", str(root / "run"), "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    (root / "run" / "lock").mkdir(mode=0o1777)
    (root / "run" / "lock").chmod(0o1777)
    ns.pivot_into(str(root))
    ns.set_hostname(own_hostname())


def own_hostname() -> str:
    """Return the name that the machine's disk gives it."""
    path = Path("/etc/hostname")
    name = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return name or "localhost"


def mount_options(disk: Disk, options: str = "") -> str:
    """Return mount data for ``disk``: a copy and its original may be mounted by the same kernel."""
    return ",".join(filter(None, [options, "nouuid" if disk.filesystem == "xfs" else ""]))


def mount_system_disk(disks: list[Disk], root: Path, shared_usr: str) -> None:
    """Mount the first disk, and the programs that all light machines share where it holds none of its own."""
    if not disks:
        raise BootError("the machine has no disk")
    disk = disks[0]
    if not disk.filesystem:
        raise BootError(f"no bootable device: /dev/{disk.name} ({disk.serial}) holds no filesystem")
    try:
        ns.mount(f"/dev/{disk.name}", str(root), disk.filesystem, ns.MS_RELATIME, mount_options(disk))
    except OSError as error:
        raise BootError(f"cannot mount /dev/{disk.name} ({disk.filesystem}) as root: {error.strerror}") from error
    if (root / LIGHT).exists():
        # Read-only, as from a file server that every one of them mounts. One of two layers has to be there for that.
        layers = f"lowerdir={shared_usr}:{root / 'usr'}"
        ns.mount("overlay", str(root / "usr"), "overlay", ns.MS_RDONLY, layers)
    if not (root / "etc").is_dir() or not (root / "bin").exists():
        raise BootError(f"/dev/{disk.name} holds no root filesystem: there is no /etc or no /bin on it")


def mount_rescue_root(rescue: Rescue, root: Path) -> None:
    """Put RAM over the base root, which stays as it is."""
    ns.mount("tmpfs", str(root), "tmpfs", 0, "mode=700")
    parts = {name: root / name for name in ("upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(mode=0o755)
    layers = f"lowerdir={rescue.base_root},upperdir={parts['upper']},workdir={parts['work']}"
    ns.mount("overlay", str(parts["merged"]), "overlay", 0, layers)
    ns.mount(str(parts["merged"]), str(root), None, ns.MS_MOVE)


def mount_filesystems(entries: list[Mount], disks: list[Disk]) -> None:
    """Mount what the disk's own fstab asks for; a missing disk stops the boot, as it does on a real machine."""
    for entry in entries:
        disk = find_disk(entry.spec, disks)
        if disk is None and entry.filesystem != "tmpfs":
            if entry.optional:
                print(f"fstab: {entry.spec} is not there, {entry.target} is left out (nofail)", flush=True)
                continue
            raise BootError(f"fstab: {entry.target}: there is no disk {entry.spec}")
        source = "tmpfs" if disk is None else f"/dev/{disk.name}"
        data = entry.data if disk is None else mount_options(disk, entry.data)
        kind = entry.filesystem if disk is None or entry.filesystem != "auto" else disk.filesystem
        try:
            Path(entry.target).mkdir(parents=True, exist_ok=True)
            ns.mount(source, entry.target, kind, entry.flags, data)
        except OSError as error:
            if not entry.optional:
                raise BootError(f"fstab: cannot mount {entry.spec} on {entry.target}: {error.strerror}") from error
            print(f"fstab: {entry.target}: {error} (nofail)", flush=True)


def find_disk(spec: str, disks: list[Disk]) -> Disk | None:
    """Return the disk that an fstab's first field names."""
    kind, _, value = spec.partition("=")
    for disk in disks:
        names = (f"/dev/{disk.name}", f"/dev/disk/by-id/{disk.by_id}", f"/dev/disk/by-uuid/{disk.uuid}")
        if spec in names or (kind == "UUID" and value.strip('"') == disk.uuid and disk.uuid):
            return disk
    return None


def prepare_rescue(rescue: Rescue) -> None:
    """Give the rescue system its name, its keys and its one account."""
    Path("/etc/hostname").write_text("rescue\n", encoding="ascii")
    ns.set_hostname("rescue")
    Path("/etc/fstab").write_text("", encoding="ascii")
    Path("/etc/machine-id").write_text(os.urandom(16).hex() + "\n", encoding="ascii")
    Path("/etc/ssh/sshd_config.d/rescue.conf").write_text(RESCUE_SSHD, encoding="ascii")
    for stale in Path("/etc/rc2.d").glob("S*"):
        if not stale.name.endswith("ssh"):
            stale.unlink()
    _tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key")
    if rescue.username != "root":
        _tool("useradd", "--non-unique", "--uid", "0", "--gid", "0", "--no-create-home", "--home-dir", "/root",
              "--shell", "/bin/bash", rescue.username)  # fmt: skip
    _tool("chpasswd", text=f"{rescue.username}:{rescue.password}\n")


def _tool(*command: str, text: str = "") -> None:
    with signal_mask_cleared():
        done = subprocess.run(
            command, input=text, text=True, env=ENVIRONMENT, capture_output=True, check=False, timeout=60
        )
    if done.returncode != 0:
        raise BootError(f"{command[0]} failed: {done.stderr.strip()}")


class signal_mask_cleared:
    """Let children start with no signal blocked."""

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, SIGNALS)


def drop_capabilities() -> None:
    """Take from everything that this process starts what could reach the host's kernel."""
    for number in DROPPED_CAPABILITIES.values():
        ns.prctl(ns.PR_CAPBSET_DROP, number)


class Services:
    """The start scripts of runlevel 2, those of one number side by side, and every orphan."""

    def __init__(self) -> None:
        self._waiting = self._groups()
        self._starting: set[int] = set()
        self._ending: int | None = None

    @staticmethod
    def _groups() -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        for path in sorted(Path("/etc/rc2.d").glob("S[0-9][0-9]*")):
            groups.setdefault(path.name[:3], []).append(str(path))
        return [groups[key] for key in sorted(groups)]

    def start(self) -> None:
        """Start the next group of scripts."""
        for script in self._waiting.pop(0) if self._waiting else []:
            self._starting.add(spawn(script, "start"))

    def supervise(self) -> int:
        """Reap until told to stop; return the exit code that says how."""
        while True:
            received = signal.sigwait(SIGNALS)
            if received == signal.SIGCHLD:
                self._reap()
                if not self._starting and self._waiting:
                    self.start()
            else:
                code = EXIT_REBOOT if received == signal.SIGTERM else EXIT_POWER_OFF
                shut_down("/etc/rc6.d" if code == EXIT_REBOOT else "/etc/rc0.d")
                return code

    def _reap(self) -> None:
        for pid in reap():
            self._starting.discard(pid)


def spawn(script: str, action: str) -> int:
    """Run an init script with the console as its output."""
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        return os.posix_spawn(
            script,
            [script, action],
            ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 0)],
            setsid=True,
            setsigmask=(),
        )
    except OSError as error:
        print(f"{script}: {error.strerror}", flush=True)
        return -1
    finally:
        os.close(null)


def reap() -> list[int]:
    """Return the process ids of the children that have ended."""
    ended: list[int] = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append(pid)


def wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Reap until ``done`` or the time is over."""
    deadline = time.monotonic() + seconds
    while not done():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        signal.sigtimedwait((signal.SIGCHLD,), min(left, 0.2))
        reap()
    return True


def is_gone(pid: int) -> bool:
    """Whether ``pid`` has been reaped."""
    return not Path(f"/proc/{pid}").exists()


def others() -> list[int]:
    """Return the other processes of the machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def shut_down(directory: str) -> None:
    """Stop the services, then every process, and leave the filesystems clean."""
    for script in sorted(Path(directory).glob("K[0-9][0-9]*")):
        pid = spawn(str(script), "stop")
        if pid > 0 and not wait_for(partial(is_gone, pid), 20):
            print(f"{script} does not end, going on", flush=True)
    for sig, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        if others():
            os.kill(-1, sig)
            wait_for(lambda: not others(), patience)
    os.sync()
    for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
        source, target = line.split()[:2]
        if source.startswith("/dev/") and target != "/":
            ns.unmount(target.encode().decode("unicode_escape"))
    ns.mount("none", "/", None, ns.MS_REMOUNT | ns.MS_RDONLY)


def reporter(fd: int) -> Callable[[dict[str, object]], None]:
    """Return a function that writes one JSON line to ``fd``."""

    def report(event: dict[str, object]) -> None:
        os.write(fd, json.dumps(event).encode() + b"\n")

    return report
