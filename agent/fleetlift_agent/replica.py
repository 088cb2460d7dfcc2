# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The receiver's half of one disk: reads, writes, zeroes and syncs the target."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, Range, extent_count, extent_length
from fleetlift_agent.hashing import is_zero
from fleetlift_agent.manifest import FileManifest
from fleetlift_agent.readback import ReadBack
from fleetlift_agent.reader import DirectReader
from fleetlift_agent.state import read_boot_id

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_ZEROS = memoryview(mmap.mmap(-1, EXTENT))
# Writes of so many bytes at least go past the page cache.
_DIRECT = 64 << 10
# How many extents are looked at before a target counts as blank: the first ones, and some spread over the rest; and
# how much of each.
_BLANK_HEAD = 16
_BLANK_SPREAD = 64
_BLANK_BYTES = 64 << 10


class OpenTarget(Protocol):
    """What the replica needs of an opened target disk."""

    @property
    def fd(self) -> int: ...

    @property
    def serial(self) -> str: ...

    @property
    def logical_block_size(self) -> int: ...


class ReplicaDisk:
    """A target disk of which the first `size` bytes become the source's disk.

    Reads are O_DIRECT, so they see what the device holds, and so are long writes: the page cache would cost a copy and
    the landing's memory. Short ones go through it, which gathers them. Both count only after `sync`.
    """

    def __init__(self, disk_id: str, target: OpenTarget, size: int) -> None:
        self.id = disk_id
        self.serial = target.serial
        self.size = size
        self.extents = extent_count(size)
        self._block = target.logical_block_size
        self._write_fd = target.fd
        flags = fcntl.fcntl(self._write_fd, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            fcntl.fcntl(self._write_fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._direct_fd = os.open(f"/proc/self/fd/{self._write_fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._direct = True
        self._reader = DirectReader(self._direct_fd, size, self._block, f"target disk {disk_id} ({self.serial})")
        self._punch = True
        self._manifest: FileManifest | None = None
        self._read_back: ReadBack | None = None

    @property
    def manifest(self) -> FileManifest:
        assert self._manifest is not None, "open_manifest comes first"
        return self._manifest

    @property
    def read_back(self) -> ReadBack:
        assert self._read_back is not None, "open_manifest comes first"
        return self._read_back

    def open_manifest(self, directory: Path, hash_name: str) -> None:
        """The manifest for this hash: the one that is open, one that an earlier receiver left, or a new one."""
        path = directory / f"manifest-{self.id}.bin"
        manifest = FileManifest(
            path, hash_name=hash_name, boot_id=read_boot_id(), serial=self.serial, disk_size=self.size
        )
        known, self._manifest = self._manifest, manifest
        if known is not None:
            known.close()
        if self._read_back is None or not manifest.reused:
            self._read_back = ReadBack(manifest, self.read)
        else:
            self._read_back.attach(manifest)

    def length(self, extent: int) -> int:
        return extent_length(self.size, extent)

    def read(self, extent: int, buffer: memoryview) -> memoryview:
        return self._reader.read(extent, buffer)

    def write(self, extent: int, ranges: Sequence[Range], view: memoryview) -> None:
        """Put the data ranges' content in place, and zeros into the zero ranges. Raises TARGET_WRITE_FAILED.

        view: the content, at a page's boundary in memory.
        """
        start = extent * EXTENT
        try:
            for part in ranges:
                begin, end = part.span(self.length(extent))
                if part.zero:
                    self._zero(start + begin, end - begin)
                else:
                    self._pwrite(view[: end - begin], start + begin)
                    view = view[end - begin :]
        except OSError as error:
            raise self.write_failed(error, start) from error

    def sync(self) -> None:
        """Make everything written so far durable. Raises TARGET_WRITE_FAILED."""
        try:
            os.fdatasync(self._write_fd)
        except OSError as error:
            raise self.write_failed(error, 0) from error

    def looks_blank(self, buffer: memoryview) -> bool:
        """Whether a sample of the disk is all zero: then asking it for hashes first is a waste."""
        step = max(1, self.extents // _BLANK_SPREAD)
        sample = sorted({*range(min(_BLANK_HEAD, self.extents)), *range(0, self.extents, step), self.extents - 1})
        return all(self._begins_blank(extent, buffer) for extent in sample)

    def _begins_blank(self, extent: int, buffer: memoryview) -> bool:
        length = min(_BLANK_BYTES, self.length(extent))
        self._reader.read_part(extent, buffer, 0, length)
        return is_zero(buffer[:length])

    def write_failed(self, error: OSError, offset: int) -> AgentError:
        return AgentError(
            "TARGET_WRITE_FAILED",
            f"Target disk {self.id} ({self.serial}) refuses writes: {error.strerror}",
            "Check the target's disk in the console and the kernel log of the landing, then replicate again",
            {"offset": offset, "errno": error.errno, "serial": self.serial},
            subject=f"disk {self.id}",
        )

    def close(self) -> None:
        os.close(self._direct_fd)
        if self._manifest is not None:
            self._manifest.close()

    def _pwrite(self, view: memoryview, offset: int) -> None:
        if self._direct and len(view) >= _DIRECT and len(view) % self._block == 0:
            try:
                done = os.pwrite(self._direct_fd, view, offset)
                view = view[done:]
                offset += done
            except OSError as error:
                # A device that wants another alignment than that of its blocks.
                if error.errno != errno.EINVAL:
                    raise
                self._direct = False
        while len(view):
            done = os.pwrite(self._write_fd, view, offset)
            view = view[done:]
            offset += done

    def _zero(self, offset: int, length: int) -> None:
        if self._punch and offset % self._block == 0 and length % self._block == 0:
            try:
                _punch_hole(self._write_fd, offset, length)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
                    raise
                self._punch = False
        self._pwrite(_ZEROS[:length], offset)


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Zero a range without writing it (block/fops.c: on a device this is a guaranteed-zero discard)."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
# fallocate64 takes 64-bit offsets on every architecture; musl has only fallocate, with the same meaning.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
