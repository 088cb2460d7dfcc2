# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the copy of a running disk may hold as zeros, because no filesystem uses it.

While the source works its maps are hints: a block that a hint calls free may be in use. So the mask remembers every
byte that was left out, each new look gives back what has come into use since (to be sent), and the look under the final
freeze, which is exact, gives back the rest. What changes is never masked: only what was free and stayed as it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Protocol

from fleetlift_agent.devices import SourceDisk, device_family, mounts_on
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.passes import Ranges
from fleetlift_agent.usedblocks.map import UsedMap, used_map
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.wire import ExtentKey

log = logging.getLogger(__name__)

MOUNTINFO = Path("/proc/self/mountinfo")

# Told of a disk (its index) and a range of its bytes (start, end) that must be sent after all.
Mark = Callable[[int, int, int], None]


class Mask(Protocol):
    """What the sender leaves out."""

    def resume(self) -> bool:
        """Take up what an earlier agent left out; False when that is not known for every disk."""

    def begin(self, disk: int) -> None:
        """All of this disk is about to be read: look at it anew. Call it after changes are tracked."""

    def refresh(self, mark: Mark) -> None:
        """Look again, and mark what was left out and may be in use now."""

    def conclude(self, mark: Mark, *, frozen: bool) -> None:
        """As `refresh`, for the last time: mark everything that was left out unless it is free for certain."""

    def free(self, key: ExtentKey) -> list[tuple[int, int]]:
        """The ranges (start, end) of the extent that are sent as zeros."""

    def worthwhile(self, key: ExtentKey, ranges: Ranges) -> Ranges:
        """The ranges without what nobody will ever read, although it changes: the inside of swap space.

        Only what is left out already: should it ever hold something else, the next look gives it back.
        """

    def summary(self) -> list[dict[str, Any]]:
        """For each disk what its volumes hold and use, as state.json shows it."""


class NullMask:
    """Everything is sent. In `directory` an earlier agent may have noted what it left out."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def resume(self) -> bool:
        """Whether nothing was left out: what was has to be sent now, as it is."""
        return self._directory is None or not any(self._directory.glob(left_out_name("*")))

    def begin(self, disk: int) -> None:
        if self._directory is not None:
            # An agent that dies in the pass that begins now leaves the disk to be read in full.
            (self._directory / left_out_name(disk)).unlink(missing_ok=True)

    def refresh(self, mark: Mark) -> None:
        """Nothing was left out."""

    def conclude(self, mark: Mark, *, frozen: bool) -> None:
        """Nothing was left out."""

    def free(self, _key: ExtentKey) -> list[tuple[int, int]]:
        return []

    def worthwhile(self, _key: ExtentKey, ranges: Ranges) -> Ranges:
        return ranges

    def summary(self) -> list[dict[str, Any]]:
        return []


def look(source: SourceDisk, frozen: bool) -> UsedMap:
    """The map of a source disk as it is mounted now. Never fails: what is not understood is in use."""
    try:
        family = tuple(device_family(os.fstat(source.fd).st_rdev))
        mounts = mounts_on(family, MOUNTINFO)
    except OSError as error:
        log.warning("the mounts of %s cannot be read: %s", source.path, error)
        return UsedMap(source.size, FreeRuns(), [])
    return used_map(source, mounts, frozen=frozen)


def left_out_name(disk: int | str) -> str:
    """The file that holds what was left out of a disk."""
    return f"left-out.{disk}.bin"


class UsedBlocksMask:
    """The mask of real disks. Memory: at most 64 MiB for each disk, and 32 MiB while it looks.

    What is left out is kept in `directory` (a tmpfs) as well, for the next agent.
    """

    def __init__(
        self,
        sources: Sequence[SourceDisk],
        directory: Path,
        looking: Callable[[SourceDisk, bool], UsedMap] = look,
    ) -> None:
        self._directory = directory
        self._sources = sources
        self._look = looking
        self._left_out = [FreeRuns() for _source in sources]
        self._swap = [FreeRuns() for _source in sources]
        self._summary: list[dict[str, Any]] = [{} for _source in sources]

    def resume(self) -> bool:
        try:
            self._left_out = [FreeRuns.unpack(self._file(disk).read_bytes()) for disk in range(len(self._sources))]
        except FileNotFoundError:
            return False
        return True

    def begin(self, disk: int) -> None:
        free, self._swap[disk] = self._looked(disk, frozen=False)
        self._left_out[disk] = free
        # Before anything is left out.
        self._keep(disk)

    def refresh(self, mark: Mark) -> None:
        for disk in range(len(self._sources)):
            self._replace(disk, *self._looked(disk, frozen=False), mark)

    def conclude(self, mark: Mark, *, frozen: bool) -> None:
        for disk in range(len(self._sources)):
            self._replace(disk, *(self._looked(disk, frozen=True) if frozen else (FreeRuns(), FreeRuns())), mark)

    def free(self, key: ExtentKey) -> list[tuple[int, int]]:
        base = key.extent * EXTENT
        end = min(base + EXTENT, self._sources[key.disk].size)
        return [(first - base, last - base) for first, last in self._left_out[key.disk].within(base, end)]

    def worthwhile(self, key: ExtentKey, ranges: Ranges) -> Ranges:
        swap = self._swap[key.disk]
        if not swap:
            return ranges
        base = key.extent * EXTENT
        left = FreeRuns()
        for offset, length in ranges:
            left.add(base + offset, base + offset + length)
        return tuple((start - base, end - start) for start, end in left.without(swap))

    def summary(self) -> list[dict[str, Any]]:
        return self._summary

    def _replace(self, disk: int, free: FreeRuns, swap: FreeRuns, mark: Mark) -> None:
        before = self._left_out[disk]
        # Not just what `free` lacks: the common part may have forgotten runs for want of memory.
        after = self._left_out[disk] = before.common(free)
        self._swap[disk] = swap.common(after)
        for start, end in before.without(after):
            mark(disk, start, end)
        # After the marks: an agent that dies in between sends too much, not too little.
        self._keep(disk)

    def _keep(self, disk: int) -> None:
        path = self._file(disk)
        new = path.with_suffix(".new")
        new.write_bytes(self._left_out[disk].pack())
        new.replace(path)

    def _file(self, disk: int) -> Path:
        return self._directory / left_out_name(disk)

    def _looked(self, disk: int, *, frozen: bool) -> tuple[FreeRuns, FreeRuns]:
        """What is free on the disk, and what of that is the inside of swap space."""
        found = self._look(self._sources[disk], frozen)
        if frozen and not found.exact:
            # A hint is no answer to the last question.
            found = UsedMap(found.size, FreeRuns(), found.volumes)
        self._summary[disk] = {"free": found.free, "used": found.used, "volumes": found.summary}
        return found.runs, found.swap
