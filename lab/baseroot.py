# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The root filesystem that sources, stock instances and the rescue system are made from.

It is built once with mmdebstrap from the machine's own apt sources and kept in the lab's cache under
the hash of its recipe. Nothing writes to it afterwards: disks are filled from it, the rescue system
lays RAM over it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.command import run
from lab.errors import LabError
from lab.mounts import remove_tree, unmount_under

SUITE = "bookworm"
PACKAGES = (
    "acl",
    "attr",
    "btrfs-progs",
    "ca-certificates",
    "cron",
    "curl",
    "e2fsprogs",
    "init-system-helpers",
    "iproute2",
    "iputils-ping",
    "libcap2-bin",
    "nftables",
    "nginx-light",
    "openssh-server",
    "postgresql",
    "procps",
    "python3",
    "python3-psycopg2",
    "python3-xxhash",
    "python3-zstandard",
    "sysvinit-utils",
    "util-linux",
    "xfsprogs",
)
# PostgreSQL compiles queries only when its LLVM library is there; without it the root is 140 MB smaller.
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/lib/postgresql/*/lib/llvmjit*",
    "/usr/lib/x86_64-linux-gnu/libLLVM*",
    "/usr/lib/x86_64-linux-gnu/libz3*",
)
# Where packages come from, in either of the two formats of sources.list(5).
MIRROR = re.compile(r"^(?:URIs:|deb\s(?:\[[^]]*\])?)\s*(\S+)", re.MULTILINE)
POWER = """\
#!/usr/bin/python3
# Process 1 of a lab machine takes the signals that busybox init takes.
import os, signal, sys
name = os.path.basename(sys.argv[0])
restart = name == "reboot" or (name == "shutdown" and "-r" in sys.argv)
os.kill(1, signal.SIGTERM if restart else signal.SIGUSR2)
"""
# What makes one server differ from another: made anew for each disk.
IDENTITY = ("etc/hostname", "etc/machine-id", "var/lib/dbus/machine-id")


def recipe_key() -> str:
    """Return the name under which the root of this recipe is kept."""
    recipe = json.dumps([SUITE, PACKAGES, LEFT_OUT, POWER, IDENTITY, 2])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def cached(cache: Path) -> Path | None:
    """Return the base root if it is built already."""
    root = cache / f"base-{recipe_key()}"
    return root if root.is_dir() else None


def build(cache: Path, progress: Callable[[str], None]) -> Path:
    """Return the base root, building it when it is not cached; two labs never build it at once."""
    with locked(cache) as lock:
        found = cached(cache)
        if found is not None:
            return found
        progress("building the base root filesystem, once for all labs (about a minute)")
        root, final = cache / "building", cache / f"base-{recipe_key()}"
        if root.exists():
            unmount_under(root)
            remove_tree(root)
        bootstrap(root, lock, PACKAGES, LEFT_OUT)
        _finish(root)
        root.rename(final)
        return final


@contextmanager
def locked(cache: Path) -> Iterator[int]:
    """Hold the cache for as long as the block and the processes that inherit the descriptor need it."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def apt_sources(suite: str = SUITE) -> list[str]:
    """Return the machine's own apt source files, those of Debian only; for another ``suite``, its lines there."""
    candidates = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    files = [path for path in candidates if path.suffix in (".list", ".sources") and path.is_file()]
    chosen = [str(path) for path in files if SUITE in path.read_text(encoding="utf-8", errors="replace")]
    if not chosen:
        raise LabError(
            f"no apt source on this machine offers Debian {SUITE}",
            "Run the lab on Debian 12, or add a Debian 12 source to /etc/apt/sources.list.d",
        )
    if suite == SUITE:
        return chosen
    texts = [Path(path).read_text(encoding="utf-8", errors="replace") for path in chosen]
    mirrors = [found[1].rstrip("/") for text in texts for found in MIRROR.finditer(text)]
    # Not the one of the security updates: an old release's may be gone from there.
    return [f"deb {mirrors[0]} {suite} main"]


def bootstrap(
    root: Path,
    lock: int,
    packages: Sequence[str],
    left_out: Sequence[str],
    *,
    options: Sequence[str] = (),
    suite: str = SUITE,
) -> None:
    """Install ``packages`` of ``suite`` into the new directory ``root``, without the files that match ``left_out``."""
    run(
        [
            # Killed with its parent; while any process of it is left, so is the lock.
            "setpriv",
            "--pdeathsig=TERM",
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            "--quiet",
            '--aptopt=Acquire::Languages "none"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in left_out),
            *options,
            f"--include={','.join(packages)}",
            suite,
            str(root),
            *apt_sources(suite),
        ],
        timeout=1800,
        pass_fds=[lock],
    )


def _finish(root: Path) -> None:
    for path in (*(root / name for name in IDENTITY), *(root / "etc/ssh").glob("ssh_host_*")):
        path.unlink(missing_ok=True)
    (root / "etc/hostname").write_text("localhost\n", encoding="ascii")
    (root / "etc/fstab").write_text("", encoding="ascii")
    (root / "etc/hosts").write_text("127.0.0.1\tlocalhost\n", encoding="ascii")
    # The host's resolver is not reachable from the lab, and none of its names are.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("", encoding="ascii")
    power = root / "usr/sbin/poweroff"
    power.write_text(POWER, encoding="ascii")
    power.chmod(0o755)
    for name in ("halt", "reboot", "shutdown"):
        (root / "usr/sbin" / name).symlink_to("poweroff")
    for name in ("nginx", "postgresql"):
        run(["chroot", str(root), "update-rc.d", name, "disable"])
    # There is no clock of its own to set.
    run(["chroot", str(root), "update-rc.d", "hwclock.sh", "remove"])
    run(["chroot", str(root), "pg_dropcluster", "15", "main"])
