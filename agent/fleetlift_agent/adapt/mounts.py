# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts, loop devices and namespaces that end with the process that made them, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from fleetlift_agent.errors import AgentError
from fleetlift_agent.forked import end_with_parent

# include/uapi/linux/mount.h, include/uapi/linux/sched.h, include/uapi/linux/umount.h.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MNT_DETACH = 2

# include/uapi/linux/loop.h.
_LOOP_SET_FD, _LOOP_CLR_FD, _LOOP_SET_STATUS64, _LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C04, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_MAJOR = 7
# struct loop_info64: 8 times 64 bits and 4 times 32 bits with offset and limit among them, then three names and init.
_LOOP_INFO = "<QQQQQIIII64s64s32sQQ"
_ATTEMPTS = 64

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    _call(
        "mount",
        source.encode(),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def unmount(target: Path, flags: int = 0) -> None:
    """umount2(2). Raises OSError."""
    _call("umount2", os.fsencode(target), flags)


def in_own_namespaces() -> None:
    """Continue as process 1 of new mount and process namespaces: every mount and process in them ends with it.

    Returns in the child only. The parent waits and exits with the child's status; a parent that is killed takes the
    child, and so all of it, with it.
    """
    _call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    parent = os.getpid()
    child = os.fork()
    if child:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_arguments: os.kill(child, signal.SIGKILL))
        while True:
            with contextlib.suppress(InterruptedError):
                _pid, status = os.waitpid(child, 0)
                os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)
    end_with_parent()
    # Seen from here a living parent, of another namespace, is 0; one that is gone would have left us to its own.
    if os.getppid() not in (0, parent):
        os._exit(1)
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


@contextlib.contextmanager
def mounted(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> Iterator[Path]:
    """A mount for the time of the block; raises OSError, also when the filesystem stays busy at the end."""
    target.mkdir(parents=True, exist_ok=True)
    mount(source, target, kind, flags, data)
    try:
        yield target
    except BaseException:
        unmount(target, MNT_DETACH)
        raise
    else:
        unmount(target)


@contextlib.contextmanager
def loop_device(path: Path, offset: int, size: int, nodes: Path, *, read_only: bool) -> Iterator[Path]:
    """A node of a loop device over *size* bytes of *path* from *offset*; it is in *nodes* and ends with its last user.

    Needed for image files and for kernels that do not know the partition table. Raises AgentError LOOP_UNAVAILABLE.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        backing = os.open(path, flags)
        try:
            loop, number = _attach(backing)
        finally:
            os.close(backing)
    except OSError as error:
        raise AgentError(
            "LOOP_UNAVAILABLE",
            f"{path} cannot be reached through a loop device: {error.strerror or error}",
            "The kernel does not know the partitions of this disk: use a rescue system whose kernel does, or one with "
            "loop devices",
            subject=str(path),
        ) from error
    try:
        _configure(loop, offset, size, read_only)
        node = nodes / f"loop{number}"
        _make_node(node, os.makedev(_LOOP_MAJOR, number))
        try:
            yield node
        finally:
            node.unlink()
    finally:
        # Detaches it when nothing has it open or mounted any more.
        os.close(loop)


def _attach(backing: int) -> tuple[int, int]:
    """A free loop device, opened and bound; others may be looking for one as well."""
    for _attempt in range(_ATTEMPTS):
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        loop = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, _LOOP_SET_FD, backing)
            return loop, number
        except OSError:
            os.close(loop)
    raise OSError(0, "no loop device stays free")


def _configure(loop: int, offset: int, size: int, read_only: bool) -> None:
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if read_only else 0)
    info = struct.pack(_LOOP_INFO, 0, 0, 0, offset, size, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    try:
        fcntl.ioctl(loop, _LOOP_SET_STATUS64, info)
    except OSError:
        fcntl.ioctl(loop, _LOOP_CLR_FD, 0)
        raise


def node_for(number: int, dev_name: str, nodes: Path) -> Path:
    """A node of the block device *number*: the one in /dev if it is that device, else one in *nodes*."""
    usual = Path("/dev") / dev_name
    try:
        status = usual.stat()
        if stat.S_ISBLK(status.st_mode) and status.st_rdev == number:
            return usual
    except FileNotFoundError:
        # The device manager has not made it, or there is none.
        usual = nodes / dev_name
    node = nodes / dev_name.replace("/", "!")
    _make_node(node, number)
    return node


def _make_node(node: Path, number: int) -> None:
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFBLK | 0o600, number)
