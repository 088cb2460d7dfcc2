# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a filesystem lies, and how its metadata is read."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Protocol

_CHUNK = 1 << 20


class ReadInFull(Exception):
    """The reason, for people, why nothing of a volume may be called free."""


class Device(Protocol):
    """Something to read bytes from."""

    def read(self, offset: int, length: int) -> bytes: ...


class DirectDevice:
    """Reads what is on the disk, past the page cache; the descriptor was opened with O_DIRECT."""

    def __init__(self, descriptor: int, block: int) -> None:
        self._descriptor = descriptor
        # Metadata is read in pages even where the disk allows less: fewer requests.
        self._block = max(block, 4096)
        self._logical = block
        self._size = os.lseek(descriptor, 0, os.SEEK_END)
        self._buffer = mmap.mmap(-1, _CHUNK)

    def read(self, offset: int, length: int) -> bytes:
        _check(offset, length, self._size)
        found = bytearray()
        position = offset - offset % self._block
        view = memoryview(self._buffer)
        while len(found) < length:
            behind = offset + len(found) - position
            # The disk may end inside of a page, but not inside of a logical block.
            wanted = min(_CHUNK, -(-(behind + length - len(found)) // self._block) * self._block, self._size - position)
            got = os.preadv(self._descriptor, [view[:wanted]], position)
            # A read that ends early may end inside of a block, where the next one cannot begin.
            usable = got - got % self._logical if got < wanted else got
            if usable <= behind:
                raise OSError(0, f"the device ends at byte {position + got}")
            found += view[behind : min(usable, behind + length - len(found))]
            position += usable
        return bytes(found)


class BufferedDevice:
    """Reads through the page cache of one device node: for a filesystem that keeps its metadata there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.lseek(descriptor, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        _check(offset, length, self._size)
        found = bytearray()
        while len(found) < length:
            part = os.pread(self._descriptor, length - len(found), offset + len(found))
            if not part:
                raise OSError(0, f"the device ends at byte {offset + len(found)}")
            found += part
        return bytes(found)


@dataclass(frozen=True)
class Volume:
    """A stretch of a device that holds one filesystem. ``start`` and ``size`` are bytes."""

    device: Device
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the volume. Raises :class:`ReadInFull` when they lie outside of it, OSError from the disk."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ReadInFull(f"its metadata points to byte {offset}, outside of its {self.size} bytes")
        return self.device.read(self.start + offset, length)


def _check(offset: int, length: int, size: int) -> None:
    if offset < 0 or length < 0 or offset + length > size:
        raise OSError(0, f"byte {offset} + {length} is beyond the end of the device ({size} bytes)")
