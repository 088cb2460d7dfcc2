# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which extents of a target disk were read back from the disk itself since they were written, and when.

One byte and a time stamp of four bytes for each MiB of the disk. Lost with the receiver: then everything is read again.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator
from typing import Callable

from fleetlift_agent.hashing import DIGEST, UNKNOWN
from fleetlift_agent.manifest import Manifest

# States of an extent: read back long ago, read back, durable and not read back yet, without a known content.
_DUE, _FRESH, _WRITTEN, _OPEN = range(4)
_PIECE = 1 << 15
_ALL_DUE = bytes([_DUE if state == _FRESH else state for state in range(256)])

Reading = Callable[[int, memoryview], memoryview]


class ReadBack:
    """The state of one disk; `read` reads an extent past every cache. Thread-safe."""

    def __init__(self, manifest: Manifest, read: Reading) -> None:
        self._manifest = manifest
        self._read = read
        self._states = bytearray()
        for first in range(0, manifest.count, _PIECE):
            count = min(_PIECE, manifest.count - first)
            digests = manifest.slice(first, count)
            if digests == UNKNOWN * count:
                self._states += bytes([_OPEN]) * count
            else:
                known = (digests[at : at + DIGEST] != UNKNOWN for at in range(0, len(digests), DIGEST))
                self._states += bytes(_WRITTEN if each else _OPEN for each in known)
        self._pending = self._states.count(_WRITTEN)
        self._stamps = array("I", bytes(4 * manifest.count))
        self._lock = threading.Lock()
        # Who reads an extent at this moment; a write sends them away empty-handed.
        self._readers: dict[int, set[object]] = {}
        self._cursor = 0
        self.damaged = 0
        # How often `next_due` came to the end of what waited, and began again.
        self.sweeps = 0

    def attach(self, manifest: Manifest) -> None:
        """The same manifest, opened again."""
        with self._lock:
            self._manifest = manifest

    def opened(self, extent: int) -> None:
        """The extent is about to be written: what is read of it from now on proves nothing."""
        with self._lock:
            self._set(extent, _OPEN)
            self._readers.pop(extent, None)

    def written(self, extent: int) -> None:
        """What was written is durable and in the manifest."""
        with self._lock:
            self._set(extent, _WRITTEN)

    def seen(self, extent: int) -> None:
        """The manifest says what was just read from the disk."""
        with self._lock:
            self._confirm(extent)

    def check(self, extent: int, buffer: memoryview, digest: Callable[[memoryview], bytes]) -> bool:
        """Read the extent and compare it with the manifest, which forgets what the disk does not hold.

        digest: the extent's, from its content. False when the disk does not hold it. Raises DISK_READ_FAILED.
        """
        token = object()
        with self._lock:
            self._readers.setdefault(extent, set()).add(token)
        known = self._manifest.get(extent)
        try:
            found = digest(self._read(extent, buffer)) if known != UNKNOWN else UNKNOWN
        except BaseException:
            with self._lock:
                self._leave(extent, token)
            raise
        with self._lock:
            undisturbed = self._leave(extent, token)
            if known == UNKNOWN or not undisturbed or self._states[extent] == _OPEN:
                return True
            if found == known:
                self._confirm(extent)
                return True
            self._forget(extent)
            return False

    def holds(self, extent: int, digest: bytes) -> bool:
        """The extent was just read and has this digest. False when the manifest said otherwise, and now nothing.

        Where it said nothing it goes on to: that content is on the disk does not make it the source's.
        """
        with self._lock:
            known = self._manifest.get(extent)
            if known == digest:
                self._confirm(extent)
            elif known != UNKNOWN:
                self._forget(extent)
            return known in (digest, UNKNOWN)

    def next_due(self) -> int | None:
        """An extent that waits to be read back, what was written since before what was read long ago.

        They come in turn, so that one that is written all the time keeps no other waiting. What waited when `sweeps`
        had some value was handed out, or written once more, when it is greater by two. So one reader alone asks this:
        it has read what it was handed before it asks again.
        """
        with self._lock:
            found = self._states.find(_WRITTEN, self._cursor)
            if found < 0:
                self.sweeps += 1
                found = self._states.find(_WRITTEN)
            if found >= 0:
                self._cursor = found + 1
                return found
            found = self._states.find(_DUE)
            return found if found >= 0 else None

    def last_written(self) -> int | None:
        """The last extent that was not read back since it was written: for readers that help the one of `next_due`."""
        found = self._states.rfind(_WRITTEN)
        return found if found >= 0 else None

    def unproved(self, age: float | None) -> Iterator[int]:
        """The extents that were not read back since they were written or, with `age`, within so many seconds."""
        if age is None:
            # Under the freeze: a disk of any size is searched in milliseconds.
            found = self._states.find(_WRITTEN)
            while found >= 0:
                yield found
                found = self._states.find(_WRITTEN, found + 1)
            return
        oldest = int(time.time() - age) + 1
        for extent in range(self._manifest.count):
            if self._states[extent] == _WRITTEN or self._stamps[extent] < oldest:
                yield extent

    def start_round(self) -> None:
        """Have everything read again in the background."""
        with self._lock:
            self._states[:] = self._states.translate(_ALL_DUE)

    @property
    def pending(self) -> int:
        """How many extents are durable and were not read back since."""
        return self._pending

    def _set(self, extent: int, state: int) -> None:
        # Counted as they change: this is asked after every extent, and of a large disk there are millions.
        self._pending += (state == _WRITTEN) - (self._states[extent] == _WRITTEN)
        self._states[extent] = state

    def _forget(self, extent: int) -> None:
        self._manifest.set(extent, UNKNOWN)
        self._set(extent, _OPEN)
        self.damaged += 1

    def _leave(self, extent: int, token: object) -> bool:
        """Whether the reader could read in peace."""
        readers = self._readers.get(extent, set())
        undisturbed = token in readers
        readers.discard(token)
        if not readers:
            self._readers.pop(extent, None)
        return undisturbed

    def _confirm(self, extent: int) -> None:
        self._set(extent, _FRESH)
        self._stamps[extent] = int(time.time())
