# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the copy's own programs in the copy, with the surroundings that they expect."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import mounts
from .record import SCRATCH

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
    "PATH": PATH,
    "LANG": "C",
    "LC_ALL": "C",
    "HOME": "/root",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_TAIL = 4000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Output:
    """How a program ended: its status (None when its time was over) and the end of what it said."""

    status: int | None
    text: str


@contextlib.contextmanager
def surroundings(root: Path, devices: Mapping[Path, str]) -> Iterator[None]:
    """/dev with the copy's own volumes, /proc, /sys, an empty /run, and a /var/tmp that is emptied afterwards.

    ``devices`` are the nodes of the copy's volumes with the UUIDs of their filesystems: a tool that looks for the root
    filesystem finds it, and no other disk.
    """
    quiet = mounts.MS_NOSUID | mounts.MS_NOEXEC
    scratch = root / SCRATCH.lstrip("/")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o1777, parents=True)
    scratch.chmod(0o1777)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.enter_context(mounts.mounted("dev", root / "dev", "tmpfs", quiet, "mode=755,size=1m"))
        _fill_dev(root / "dev", devices)
        stack.enter_context(mounts.mounted("proc", root / "proc", "proc", quiet | mounts.MS_NODEV))
        stack.enter_context(mounts.mounted("/sys", root / "sys", "", mounts.MS_BIND))
        mounts.mount("/sys", root / "sys", "", mounts.MS_BIND | mounts.MS_REMOUNT | mounts.MS_RDONLY | quiet)
        stack.enter_context(mounts.mounted("run", root / "run", "tmpfs", mounts.MS_NOSUID, "mode=755"))
        if (root / "var/tmp").is_dir() and not (root / "var/tmp").is_symlink():
            stack.enter_context(mounts.mounted(str(scratch), root / "var/tmp", "", mounts.MS_BIND))
        yield


def _fill_dev(dev: Path, devices: Mapping[Path, str]) -> None:
    for name, (major, minor) in _NODES.items():
        _node(dev / name, Path("/dev") / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    for name, target in _LINKS.items():
        (dev / name).symlink_to(target)
    for name in ("pts", "shm", "disk", "disk/by-uuid", "mapper"):
        (dev / name).mkdir(mode=0o755)
    for node, uuid in devices.items():
        name = node.name
        _node(dev / name, node, stat.S_IFBLK | 0o600, node.stat().st_rdev)
        link = dev / "disk/by-uuid" / uuid
        if uuid and not link.is_symlink():
            link.symlink_to(f"../../{name}")


def _node(place: Path, usual: Path, mode: int, number: int) -> None:
    """A device node; bound from this system where a new one may not be made."""
    try:
        os.mknod(place, mode, number)
        os.chmod(place, stat.S_IMODE(mode))
    except PermissionError:
        place.touch()
        mounts.mount(str(usual), place, "", mounts.MS_BIND)


def run(root: Path, command: Sequence[str], timeout: float) -> Output:
    """Run a program of the copy, by its absolute path, with its words."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        preexec_fn=lambda: _enter(root),
        start_new_session=True,
    )
    try:
        said, _none = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _none = process.communicate()
        return Output(None, said.decode("utf-8", "replace")[-_TAIL:])
    return Output(process.returncode, said.decode("utf-8", "replace")[-_TAIL:])


def filtered(root: Path, program: str, data: bytes) -> Iterator[bytes]:
    """What ``program -dc`` makes of *data*: the copy's own program if it has one. Raises FileNotFoundError."""
    own = next(
        (f"/{base}/{program}" for base in ("usr/bin", "bin") if (root / base / program).exists()),
        None,
    )
    here = None if own else shutil.which(program)
    if own is None and here is None:
        raise FileNotFoundError(program)
    process = subprocess.Popen(
        [own or str(here), "-dc"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        preexec_fn=(lambda: _enter(root)) if own else None,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin = process.stdin

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            stdin.write(data)
            stdin.close()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        while True:
            piece = process.stdout.read(_CHUNK)
            if not piece:
                break
            yield piece
    finally:
        process.stdout.close()
        process.kill() if process.poll() is None else None
        process.wait()
        feeder.join()


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")
