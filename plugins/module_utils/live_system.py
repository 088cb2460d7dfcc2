# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server that a module runs on: everything that ``preflight`` reads of it, and nothing that changes it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import gzip
import mmap
import os
import platform
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.process import get_bin_path

from .disk_activity import parse_diskstats, parse_uptime, write_rate
from .kernel_support import SECURE_BOOT, initramfs_drivers, parse_lockdown, parse_secure_boot
from .own_addresses import (
    LARGEST_FILE,
    MOST_FILES,
    MOST_MENTIONS,
    is_searched,
    mentions,
    parse_fib_trie,
    parse_if_inet6,
    parse_listeners,
    resolving_to,
)
from .source_facts import HEAD_BYTES, TAIL_BYTES
from .workloads import Process, of_interest, process_from

# include/uapi/linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args), 1024 bytes, the fsid at 16.
BTRFS_IOC_FS_INFO = 0x8400941F

# adjtimex(2): the answer when the clock is not kept by anyone. struct timex has 208 bytes at most.
TIME_ERROR = 5
TIMEX_BYTES = 512

READ_SAMPLE = 32 << 20
READ_SAMPLE_SECONDS = 1.0
# A name server that does not answer must not hold up the rest.
LOOKUP_SECONDS = 3.0
PROXY = re.compile(r"^\s*(?:export\s+)?(?:https?|all)_proxy=[\"']?([^\"'\s]+)", re.IGNORECASE | re.MULTILINE)


class LiveSystem:
    """The server that this module runs on."""

    def text(self, path: str) -> str | None:
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "surrogateescape").strip(" \n\0")

    def data(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            # Absent on this kind of device or kernel, or the device does not answer: unknown in either case.
            return None

    def real(self, path: str) -> str:
        return os.path.realpath(path)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def ends(self, path: str, size: int) -> tuple[bytes, bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, HEAD_BYTES, 0), os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        finally:
            os.close(fd)

    def usage(self, mountpoint: str) -> tuple[int, int] | None:
        try:
            status = os.statvfs(mountpoint)
        except OSError:
            # Hidden under a later mount, or not for this user.
            return None
        return status.f_blocks * status.f_frsize, status.f_bfree * status.f_frsize

    def btrfs_id(self, mountpoint: str) -> str | None:
        try:
            fd = os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Hidden under a later mount, or not for this user.
            return None
        try:
            return str(uuid.UUID(bytes=fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, bytes(1024))[16:32]))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        finally:
            os.close(fd)


def service_manager(module: AnsibleModule) -> str:
    """The kind of service manager that runs this server."""
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    if module.get_bin_path("rc-service"):
        return "openrc"
    return "sysv" if os.path.isdir("/etc/init.d") else "none"


def knows_service(module: AnsibleModule, manager: str, name: str) -> bool:
    """Whether the service manager could stop the service *name*."""
    if not name or "/" in name or name.startswith("-"):
        return False
    if manager == "systemd":
        command = [module.get_bin_path("systemctl", required=True), "show", "--property=LoadState", "--", name]
        return bool(module.run_command(command)[1].strip() == "LoadState=loaded")
    if manager == "openrc":
        return bool(module.run_command([module.get_bin_path("rc-service", required=True), "--exists", name])[0] == 0)
    return manager == "sysv" and os.access(os.path.join("/etc/init.d", name), os.X_OK)


def clock_synchronised() -> bool | None:
    """Whether the kernel says that its clock is kept by NTP; None when it does not tell."""
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if answer < 0 else answer != TIME_ERROR


def has_tool(name: str) -> bool:
    """Whether the program *name* is on the path, which always includes that of the super-user."""
    try:
        get_bin_path(name)
    except ValueError:
        return False
    return True


def ssh_host_keys() -> list[str]:
    """The server's public SSH host keys, type and key without comment: they go where its disk goes."""
    keys = []
    for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
        with open(path, encoding="ascii", errors="replace") as file:
            keys.append(" ".join(file.read().split()[:2]))
    return keys


def kernel_config(system: LiveSystem, release: str) -> str | None:
    """The text of the running kernel's configuration; None where it is not kept."""
    text = system.text(f"/boot/config-{release}")
    packed = system.data("/proc/config.gz") if text is None else None
    return gzip.decompress(packed).decode("ascii", "replace") if packed else text


def initramfs_of(module: AnsibleModule, system: LiveSystem, release: str) -> dict[str, bool] | None:
    """Which drivers the running kernel's initramfs holds; None where there is none, or no program to look into it."""
    images = (f"initrd.img-{release}", f"initramfs-{release}.img", f"initrd-{release}", f"initrd-{release}.img")
    image = next((f"/boot/{name}" for name in images if system.exists(f"/boot/{name}")), None)
    program = module.get_bin_path("lsinitramfs") or module.get_bin_path("lsinitrd")
    if image is None or program is None:
        return None
    # lsinitrd unpacks to a temporary directory: in memory, so that nothing is written to a disk.
    status, listing, _errors = module.run_command(
        [program, image], environ_update={"TMPDIR": "/dev/shm", "LC_ALL": "C"}
    )
    return initramfs_drivers(listing) if status == 0 else None


def lockdown(system: LiveSystem) -> str | None:
    """The mode of the kernel's lockdown; None where it has none."""
    return parse_lockdown(system.text("/sys/kernel/security/lockdown"))


def secure_boot(system: LiveSystem) -> bool | None:
    """Whether the firmware verified what it started; None where it cannot or does not tell."""
    return parse_secure_boot(system.data(SECURE_BOOT))


def selinux_mode(system: LiveSystem) -> str:
    """``enforcing``, ``permissive`` or ``disabled``."""
    return {"1": "enforcing", "0": "permissive"}.get(system.text("/sys/fs/selinux/enforce") or "", "disabled")


def processes(system: LiveSystem) -> list[Process]:
    """The processes that a finding may be about. One that ends meanwhile is none."""
    names = (name for name in system.names("/proc") if name.isdecimal())
    return of_interest(
        process_from(comm, system.text(f"/proc/{name}/cgroup"))
        for name in names
        for comm in [system.text(f"/proc/{name}/comm")]
        if comm
    )


def proxies(system: LiveSystem) -> list[str]:
    """The proxies that the environment of logins names, without user and password."""
    texts = [system.text("/etc/environment") or ""]
    texts += [system.text(f"/etc/profile.d/{name}") or "" for name in system.names("/etc/profile.d")]
    found = []
    for value in PROXY.findall("\n".join(texts)):
        url = urlsplit(value if "://" in value else f"http://{value}")
        found.append(f"{url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else ""))
    return list(dict.fromkeys(found))


def addresses_of(system: LiveSystem, known: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The server's addresses, those *known* to others included, and what names them."""
    own = parse_fib_trie(system.text("/proc/net/fib_trie") or "") + parse_if_inet6(
        system.text("/proc/net/if_inet6") or ""
    )
    addresses = list(dict.fromkeys([*own, *known]))
    found: list[dict[str, Any]] = []
    for path in _configuration():
        text = system.text(path)
        found += mentions(path, text, addresses) if text else []
        if len(found) >= MOST_MENTIONS:
            break
    looked_up = {name: _resolve(name) for name in dict.fromkeys([platform.node(), *names]) if name}
    return {
        "own": addresses,
        "listeners": parse_listeners(system.text("/proc/net/tcp") or "", system.text("/proc/net/tcp6") or ""),
        "mentions": found[:MOST_MENTIONS],
        "names": resolving_to(looked_up, addresses),
    }


def _configuration() -> Iterator[str]:
    """Text files below /etc that may name an address; at most MOST_FILES, none that is large."""
    seen = 0
    for directory, subdirectories, files in os.walk("/etc"):
        subdirectories.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if is_searched(path) and os.path.isfile(path) and os.path.getsize(path) <= LARGEST_FILE:
                seen += 1
                if seen > MOST_FILES:
                    return
                yield path


def _resolve(name: str) -> list[str]:
    """The addresses of *name*; none when nobody says so in time."""
    found: list[str] = []

    def look_up() -> None:
        try:
            found.extend(str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            # No such name, or no name server: nothing names this server by it.
            return

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return list(found)


def sample_reading(path: str, size: int) -> float | None:
    """Bytes per second of a short sequential read past the cache; None when the disk does not allow one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, 1 << 20) as buffer:
            begun, done = time.monotonic(), 0
            while done + len(buffer) <= min(size, READ_SAMPLE) and time.monotonic() - begun < READ_SAMPLE_SECONDS:
                done += os.preadv(fd, [buffer], done)
            seconds = time.monotonic() - begun
    except OSError:
        # A disk that cannot be read is another finding's matter.
        return None
    finally:
        os.close(fd)
    return done / seconds if done and seconds > 0 else None


class Activity:
    """Watches what is written to the disks from when it is made until it is asked."""

    def __init__(self, system: LiveSystem) -> None:
        self._system = system
        self._begun = time.monotonic()
        self._before = self._look()

    def _look(self) -> dict[str, int]:
        return parse_diskstats(self._system.text("/proc/diskstats") or "")

    def add_to(self, disks: list[dict[str, Any]], at_least: float) -> None:
        """Write the rates into the records of *disks*, after *at_least* seconds of watching."""
        if at_least > 0:
            time.sleep(max(0.0, self._begun + at_least - time.monotonic()))
        after, seconds = self._look(), time.monotonic() - self._begun
        uptime = parse_uptime(self._system.text("/proc/uptime") or "")
        for disk in disks:
            rate = write_rate(disk["number"], self._before, after, seconds if at_least > 0 else 0, uptime)
            disk["write_bytes_per_second"] = rate.sampled
            disk["write_bytes_per_second_since_boot"] = rate.since_boot
