# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze the filesystems on the source's disks, with a second process that thaws them whatever happens to this one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import math
import mmap
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from .devices import MountRecord, device_family, mounted_btrfs, mounts_on, parse_mountinfo, under
from .errors import AgentError
from .forked import close_all_but
from .memory import MCL_CURRENT, c_library

# include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

# These have no way to freeze (fs/fat, fs/exfat: no freeze_fs). The boot partition of UEFI is one; it is written out
# before the others are frozen, and its writers are package updates, which do not run during a cutover.
UNFREEZABLE = frozenset({"vfat", "msdos", "exfat"})

# The shared page: what the two processes know of each other without asking.
_THAWED_BY_WATCHDOG = 0
_FIRST_MOUNT = 1

# The watchdog looks this often (seconds) whether its parent lives and whether a late freeze must be undone.
_PATROL = 0.25
_REPLY_TIMEOUT = 5.0
_START_TIMEOUT = 60.0

_EXTEND = b"E"
_RELEASE = b"R"
_DONE = b"D"
_LOST = b"L"


def mounts_of_disks(
    devices: Sequence[Path],
    *,
    mountinfo: Path = Path("/proc/self/mountinfo"),
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    root: Path = Path("/"),
) -> list[Path]:
    """One path into each writable filesystem on the whole disks *devices*, deepest first, ``/`` last.

    Filesystems on their partitions and on volumes made of them count. A filesystem mounted twice is named once; one
    whose superblock is read-only needs no freeze and is left out. ``root`` is where the paths in *mountinfo* are found.
    Raises :class:`AgentError` FILESYSTEM_UNREACHABLE when a filesystem is hidden under later mounts everywhere.
    """
    family: list[int] = []
    for device in devices:
        status = device.stat()
        if not stat.S_ISBLK(status.st_mode):
            raise AgentError(
                "SOURCE_DISK_NOT_A_DISK",
                f"{device} is not a block device",
                "Name a whole disk such as /dev/sda in the disk mapping of this source",
                subject=str(device),
            )
        family += [number for number in device_family(status.st_rdev, sys) if number not in family]
    filesystems: dict[int, list[MountRecord]] = {}
    for record in mounts_on(tuple(family), mountinfo, sys=sys, dev=dev, root=root):
        if not record.read_only:
            filesystems.setdefault(record.device, []).append(record)
    paths = [_way_into(records, root) for records in filesystems.values()]
    return sorted(paths, key=lambda path: (-len(path.parts), str(path)))


def _way_into(records: list[MountRecord], root: Path) -> Path:
    """The shortest mountpoint, directories before files, from which this filesystem is really reached."""
    reached = []
    for record in records:
        path = under(root, record.mountpoint)
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if status.st_dev == record.device or (record.filesystem == "btrfs" and mounted_btrfs(path) is not None):
            reached.append((not stat.S_ISDIR(status.st_mode), len(path.parts), str(path)))
    if not reached:
        mountpoints = [record.mountpoint for record in records]
        raise AgentError(
            "FILESYSTEM_UNREACHABLE",
            f"the filesystem at {mountpoints[0]} is hidden under a later mount and cannot be frozen",
            "Unmount what hides it, or unmount the filesystem itself, and try again",
            {"mountpoints": mountpoints},
            subject=mountpoints[0],
        )
    return Path(min(reached)[2])


class FilesystemFreezer:
    """Holds filesystems frozen for at most ``timeout`` seconds from :meth:`freeze` on.

    Entering the context opens every filesystem and starts the watchdog: a forked process, locked in memory, that holds
    the same descriptors and needs nothing else. It thaws what was frozen when the deadline passes, when this process
    ends in whatever way, or when the pipe between them breaks. Leaving the context thaws.

    While frozen, ``thawed_by`` stays None; it is "watchdog" once the watchdog undid the freeze, and what was read after
    that is not one consistent state of the disks.
    """

    def __init__(self, mounts: Sequence[Path], timeout: float) -> None:
        self.mounts = list(mounts)
        self.not_freezable: list[Path] = []
        self._timeout = timeout
        self._descriptors: list[int] = []
        self._types: list[str] = []
        self._shared: mmap.mmap | None = None
        self._channel: socket.socket | None = None
        self._watchdog: int | None = None
        self._frozen = False

    def __enter__(self) -> FilesystemFreezer:
        self._shared = mmap.mmap(-1, _FIRST_MOUNT + max(1, len(self.mounts)))
        try:
            types = {record.device: record.filesystem for record in _own_mounts()}
            for mount in self.mounts:
                self._descriptors.append(_open_mount(mount))
                self._types.append(types.get(os.fstat(self._descriptors[-1]).st_dev, ""))
            self._start_watchdog()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def thawed_by(self) -> str | None:
        """None, or "watchdog" when the freeze was undone without this process asking for it."""
        if self._shared is not None and self._shared[_THAWED_BY_WATCHDOG]:
            return "watchdog"
        return None

    @property
    def watchdog_pid(self) -> int | None:
        return self._watchdog

    def is_frozen(self) -> bool:
        """Whether every filesystem is still frozen and guarded; when False, data read may mix two states.

        A freeze whose watchdog has died (killed by hand) is undone here, for nothing would end it in an emergency.
        """
        if self._frozen and self.thawed_by is None and not self._guarded():
            assert self._shared is not None
            self._shared[_THAWED_BY_WATCHDOG] = 1
            self.thaw()
        return self._frozen and self.thawed_by is None

    def write_out(self) -> None:
        """Have what is cached on the disks, so that the freeze has little left to write. Nothing is held meanwhile."""
        for index, descriptor in enumerate(self._descriptors):
            self._write_out(self.mounts[index], descriptor)

    def freeze(self) -> None:
        """Write out, then freeze, every filesystem in the order given (the root belongs last).

        Raises :class:`AgentError` FREEZE_FAILED or FREEZE_TIMED_OUT; everything is thawed by then.
        """
        if self._frozen:
            return
        for index, descriptor in enumerate(self._descriptors):
            self._write_out(self.mounts[index], descriptor)
        # The deadline counts from here: nothing is held while writing out, however long that takes.
        self.extend(self._timeout)
        for index, descriptor in enumerate(self._descriptors):
            try:
                self._freeze_one(index, descriptor)
            except BaseException:
                self.thaw()
                raise
            if self.thawed_by is not None:
                self.thaw()
                raise AgentError(
                    "FREEZE_TIMED_OUT",
                    f"freezing the filesystems took longer than {self._timeout:g} seconds, and they were thawed",
                    "Find what writes heavily, name its service for the cutover, or allow a longer freeze",
                    {"mounts": [str(mount) for mount in self.mounts]},
                    subject=str(self.mounts[index]),
                )
        self._frozen = True

    def extend(self, timeout: float) -> None:
        """Move the watchdog's deadline to ``timeout`` seconds from now.

        Raises :class:`AgentError` FREEZE_LOST when the filesystems are thawed already.
        """
        if not self._ask(_EXTEND + struct.pack("d", time.monotonic() + timeout)):
            raise _freeze_lost(self.mounts)

    def thaw(self) -> None:
        """Thaw what this object froze. Safe to call at any time and more than once.

        Raises :class:`AgentError` THAW_FAILED when the kernel refuses; the watchdog keeps trying until it ends.
        """
        failures: dict[str, str] = {}
        # The root first: whoever wants to report anything needs it.
        for index in reversed(range(len(self._descriptors))):
            assert self._shared is not None
            if not self._shared[_FIRST_MOUNT + index]:
                continue
            try:
                _thaw(self._descriptors[index])
            except OSError as error:
                failures[str(self.mounts[index])] = error.strerror or str(error)
            else:
                self._shared[_FIRST_MOUNT + index] = 0
        self._frozen = False
        if failures:
            raise AgentError(
                "THAW_FAILED",
                f"the kernel refused to thaw {', '.join(failures)}",
                "Run `fsfreeze --unfreeze` for each of them on the source, from a shell that is already open",
                {"errors": failures},
                subject=next(iter(failures)),
            )
        # Nothing is held any more, so no deadline may pass and be taken for a lost freeze.
        self._ask(_EXTEND + struct.pack("d", math.inf))

    def close(self) -> None:
        """Thaw, end the watchdog, close the descriptors. ``thawed_by`` keeps its answer."""
        try:
            self.thaw()
        finally:
            if self._channel is not None:
                self._ask(_RELEASE)
                self._channel.close()
                self._channel = None
            if self._watchdog is not None:
                os.waitpid(self._watchdog, 0)
                self._watchdog = None
            while self._descriptors:
                os.close(self._descriptors.pop())

    def _write_out(self, mount: Path, descriptor: int) -> None:
        if c_library().syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise AgentError(
                "FREEZE_FAILED",
                f"writing out {mount} failed: {os.strerror(number)}",
                "Check the kernel log of the source for errors of the disk below it",
                {"errno": errno.errorcode.get(number, str(number))},
                subject=str(mount),
            )

    def _freeze_one(self, index: int, descriptor: int) -> None:
        assert self._shared is not None
        mount = self.mounts[index]
        # Before the freeze, so that the watchdog knows of it even if this process dies within the call.
        self._shared[_FIRST_MOUNT + index] = 1
        try:
            fcntl.ioctl(descriptor, FIFREEZE, 0)
        except OSError as error:
            self._shared[_FIRST_MOUNT + index] = 0
            if error.errno == errno.EOPNOTSUPP and self._types[index] in UNFREEZABLE:
                self.not_freezable.append(mount)
                return
            reason = "it is frozen already" if error.errno == errno.EBUSY else (error.strerror or str(error))
            raise AgentError(
                "FREEZE_FAILED",
                f"{mount} cannot be frozen: {reason}",
                "End the backup or snapshot job that froze it and try again"
                if error.errno == errno.EBUSY
                else "Stop the services that use it and unmount it, then try again",
                {"errno": errno.errorcode.get(error.errno or 0, ""), "filesystem": self._types[index]},
                subject=str(mount),
            ) from error

    def _guarded(self) -> bool:
        if self._channel is None:
            return False
        poll = select.poll()
        poll.register(self._channel, 0)
        return not poll.poll(0)

    def _ask(self, message: bytes) -> bool:
        """Whether the watchdog obeyed; False when it is gone or has thawed."""
        if self._channel is None:
            return False
        try:
            self._channel.sendall(message)
            return self._channel.recv(1) == _DONE
        except OSError:
            # A watchdog that does not answer guards nothing: the caller treats the freeze as lost.
            return False

    def _start_watchdog(self) -> None:
        assert self._shared is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Looked up here: after the fork only system calls are safe, other threads may have held any lock.
        library = c_library()
        keep = {theirs.fileno(), *self._descriptors}
        parent = os.getpid()
        self._watchdog = os.fork()
        if self._watchdog == 0:
            _watchdog_process(theirs, self._descriptors, self._shared, parent, keep, library)
        theirs.close()
        # Nothing is frozen yet, and a server that is short of processor time may take long for a new process.
        ours.settimeout(_START_TIMEOUT)
        self._channel = ours
        try:
            started = ours.recv(1) == _DONE
        except OSError:  # Also when its time is over; that is no TimeoutError before Python 3.10.
            started = False
        ours.settimeout(_REPLY_TIMEOUT)
        if not started:
            raise AgentError(
                "WATCHDOG_FAILED",
                "the process that thaws the filesystems in an emergency did not start",
                "Check the free memory, the load and the process limit of the source",
                subject="freeze",
            )


def _freeze_lost(mounts: Sequence[Path]) -> AgentError:
    return AgentError(
        "FREEZE_LOST",
        "the filesystems are no longer guarded by the watchdog, or it has thawed them",
        "Start the cutover again; allow a longer freeze if the final pass was slow",
        {"mounts": [str(mount) for mount in mounts]},
        subject="freeze",
    )


def _own_mounts() -> list[MountRecord]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def _open_mount(mount: Path) -> int:
    """A descriptor into the filesystem. A mountpoint may be a file (a bind mount), hence no O_DIRECTORY for those."""
    kind = os.O_DIRECTORY if mount.is_dir() else 0
    try:
        return os.open(mount, os.O_RDONLY | kind | os.O_CLOEXEC)
    except OSError as error:
        raise AgentError(
            "FREEZE_FAILED",
            f"{mount} cannot be opened: {error.strerror}",
            "Check that it is still mounted and that the agent runs as root",
            {"errno": errno.errorcode.get(error.errno or 0, "")},
            subject=str(mount),
        ) from error


def _thaw(descriptor: int) -> None:
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        # EINVAL: it is not frozen, which is what was wanted.
        if error.errno != errno.EINVAL:
            raise


def _watchdog_process(
    channel: socket.socket,
    descriptors: Sequence[int],
    shared: mmap.mmap,
    parent: int,
    keep: set[int],
    library: ctypes.CDLL,
) -> NoReturn:
    """The life of the watchdog. It touches no file, imports nothing, and never returns into the parent's code."""
    status = 1
    try:
        gc.disable()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
        os.setsid()
        close_all_but(keep)
        # A fork starts with nothing locked. Without the right to lock it still works, only slower under pressure.
        library.mlockall(MCL_CURRENT)
        _refuse_to_be_killed_for_memory()
        channel.sendall(_DONE)
        _guard(channel, descriptors, shared, parent)
        status = 0
    finally:
        # Whatever went wrong above, the filesystems do not stay frozen.
        _thaw_marked(descriptors, shared)
        os._exit(status)


def _guard(channel: socket.socket, descriptors: Sequence[int], shared: mmap.mmap, parent: int) -> None:
    """Watch the channel, the deadline and the parent; return when there is nothing left to guard."""
    deadline = math.inf
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while os.getppid() == parent:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            # Told before it is done: the parent must never believe in a freeze that is being undone. Repeated on every
            # round: a freeze that was under way when the deadline passed takes effect only now.
            shared[_THAWED_BY_WATCHDOG] = 1
            _thaw_marked(descriptors, shared)
            remaining = _PATROL
        if not poll.poll(min(remaining, _PATROL) * 1000):
            continue
        message = channel.recv(64)
        if not message:
            return
        if message[:1] == _RELEASE:
            channel.sendall(_DONE)
            return
        if shared[_THAWED_BY_WATCHDOG]:
            channel.sendall(_LOST)
            continue
        deadline = struct.unpack("d", message[1:9])[0]
        channel.sendall(_DONE)


def _thaw_marked(descriptors: Sequence[int], shared: mmap.mmap) -> None:
    """Thaw what the parent froze, the root (last in the list) first, and go on past a refusal."""
    for index in reversed(range(len(descriptors))):
        if shared[_FIRST_MOUNT + index]:
            try:
                _thaw(descriptors[index])
            except OSError:
                # Nobody is left to tell; the next round tries again, and the others still have to be thawed.
                continue


def _refuse_to_be_killed_for_memory() -> None:
    """Tell the kernel to end other processes first when memory runs out (proc(5), oom_score_adj)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    except OSError:
        # Forbidden in some containers; the parent notices a dead watchdog and thaws.
        return
