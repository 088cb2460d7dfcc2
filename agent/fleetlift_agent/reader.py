# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading extents past the page cache.

A buffered read of a mounted device returns stale data after the filesystem rewrote the
block, so every pass reads with O_DIRECT, which wants aligned buffers: anonymous maps.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable
from typing import Callable

from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, extent_length


class DirectReader:
    """Reads whole extents of one disk from a descriptor opened with O_DIRECT.

    size: bytes of the disk that belong to the replica; block: its logical block size,
    to which reads of the last extent are rounded up. Thread-safe.
    """

    def __init__(self, descriptor: int, size: int, block: int, subject: str) -> None:
        self._descriptor = descriptor
        self._size = size
        self._block = block
        self._subject = subject

    def read(self, extent: int, buffer: memoryview) -> memoryview:
        """The extent's bytes inside `buffer` (an extent long). Raises AgentError DISK_READ_FAILED."""
        length = extent_length(self._size, extent)
        self.read_part(extent, buffer, 0, length)
        return buffer[:length]

    def read_part(self, extent: int, buffer: memoryview, start: int, end: int) -> None:
        """Bytes `start` to `end` of the extent into the same place of `buffer`; `start` is on a block's boundary."""
        rounded = -(-end // self._block) * self._block
        offset = extent * EXTENT
        try:
            got = start
            while got < end:
                count = os.preadv(self._descriptor, [buffer[got:rounded]], offset + got)
                if count == 0:
                    raise OSError(0, "the device ends before its stated size")
                got += count
        except OSError as error:
            raise AgentError(
                "DISK_READ_FAILED",
                f"{self._subject} cannot be read at byte {offset + got}: {error.strerror}",
                "Check the disk and the kernel log of its host; replication continues where it stopped",
                {"offset": offset + got, "errno": error.errno},
                subject=self._subject,
            ) from error


class BufferPool:
    """A fixed number of extent buffers: whoever waits for one slows down the stage before it."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)

    def acquire(self, cancelled: Callable[[], bool]) -> memoryview | None:
        """A buffer, or None once `cancelled()`."""
        while not cancelled():
            try:
                return self._free.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def release(self, buffer: memoryview) -> None:
        self._free.put(buffer)
