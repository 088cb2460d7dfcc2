# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loop devices over sparse files: the disks of the lab's machines."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.command import run
from lab.errors import LabError

# Bytes that are copied between two words about the progress.
COPY_STEP = 32 * 1024 * 1024


@dataclass(frozen=True)
class LoopDevice:
    """An attached loop device."""

    path: str
    backing_file: str

    @property
    def number(self) -> int:
        """The device number (major and minor)."""
        return os.stat(self.path).st_rdev


def create_sparse(path: Path, size: int) -> None:
    """Make a sparse file of ``size`` bytes that only its owner can read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, size)
    finally:
        os.close(fd)


def copy_sparse(source: Path, target: Path, progress: Callable[[int], None] = lambda percent: None) -> None:
    """Make ``target`` a file with the bytes of ``source`` and its holes; ``progress`` is told whole per cents."""
    target.unlink(missing_ok=True)
    size = source.stat().st_size
    create_sparse(target, size)
    told = 0
    with source.open("rb") as reading, target.open("r+b") as writing:
        for offset, end in data_ranges(reading.fileno(), size):
            while offset < end:
                # The kernel shares the blocks where the filesystem can.
                offset += os.copy_file_range(
                    reading.fileno(), writing.fileno(), min(COPY_STEP, end - offset), offset, offset
                )
                if offset * 100 // size > told:
                    told = offset * 100 // size
                    progress(told)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the file ``fd`` that are no holes, as (offset, end) in bytes."""
    end = 0
    while end < size:
        try:
            offset = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        yield offset, end


def attach(path: Path, *, read_only: bool = False) -> LoopDevice:
    """Attach a free loop device to ``path``."""
    options = ["--read-only"] if read_only else []
    device = run(["losetup", "--find", "--show", *options, str(path)]).strip()
    return LoopDevice(device, str(path))


def detach(device: LoopDevice, *, timeout: float = 120) -> None:
    """Detach ``device`` and wait until the kernel has let go of its file."""
    if not is_attached(device):
        return
    wait_released(device.path, timeout=timeout)
    run(["losetup", "--detach", device.path])
    deadline = time.monotonic() + timeout
    while is_attached(device):
        if time.monotonic() > deadline:
            raise LabError(f"{device.path} is still attached to {device.backing_file} after {timeout:g} s")
        time.sleep(0.02)


def is_attached(device: LoopDevice) -> bool:
    """Whether ``device`` still carries its file: the number of one that does not may be another's by now."""
    return device in attached_under(Path(device.backing_file))


def wait_released(device: str, *, timeout: float = 120) -> None:
    """Wait until no filesystem claims ``device`` any more.

    A mount namespace that somebody else made while it was mounted keeps it so until that namespace ends.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise LabError(f"{device} is still mounted after {timeout:g} s") from error
        else:
            return
        time.sleep(0.02)


def attached_under(directory: Path) -> list[LoopDevice]:
    """Return the loop devices whose backing file is ``directory`` or lies in it (deleted files too)."""
    text = run(["losetup", "--list", "--json", "--output", "NAME,BACK-FILE"])
    rows = json.loads(text)["loopdevices"] if text.strip() else []
    devices = [LoopDevice(row["name"], (row["back-file"] or "").removesuffix(" (deleted)")) for row in rows]
    return [device for device in devices if Path(device.backing_file).is_relative_to(directory)]


@dataclass(frozen=True)
class Probe:
    """What a disk says it holds; empty strings where it says nothing."""

    filesystem: str
    uuid: str
    label: str


def probe(device: str) -> Probe:
    """Look at the superblock of ``device``, past every cache."""
    try:
        text = run(["blkid", "--probe", "--output", "export", device])
    except LabError as error:
        # blkid exits with 2 both for "nothing found" and for an unreadable device (blkid(8)).
        if "exit code 2" in error.cause and os.access(device, os.R_OK):
            return Probe("", "", "")
        raise
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    return Probe(values.get("TYPE", ""), values.get("UUID", ""), values.get("LABEL", ""))


@contextmanager
def mounted(path: Path, mountpoint: Path, *, options: tuple[str, ...] = ()) -> Iterator[Path]:
    """Mount the filesystem in the file ``path`` on ``mountpoint`` for the length of the block."""
    mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
    device = attach(path, read_only="ro" in options)
    try:
        found = probe(device.path)
        chosen = [*options, *(["nouuid"] if found.filesystem == "xfs" else [])]
        # A detached mount namespace of another machine may still be letting go of the device.
        wait_released(device.path)
        run(["mount", *(["-o", ",".join(chosen)] if chosen else []), device.path, str(mountpoint)])
        try:
            yield mountpoint
        finally:
            unmount(mountpoint)
    finally:
        detach(device)


def unmount(mountpoint: Path, *, timeout: float = 60) -> None:
    """Unmount, once nobody looks into it any more: a search over the lab's directory may have come by."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            run(["umount", str(mountpoint)])
        except LabError as error:
            if "busy" not in error.cause or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.1)
