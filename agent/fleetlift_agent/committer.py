# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes written extents durable in batches, and only then vouches for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Callable

from fleetlift_agent import wire
from fleetlift_agent.errors import AgentError
from fleetlift_agent.replica import ReplicaDisk
from fleetlift_agent.wire import ExtentKey

# A batch is synced when it is this large or this old, or when nothing was added for so long, whichever comes first.
BATCH_BYTES = 32 << 20
BATCH_EXTENTS = 128
BATCH_SECONDS = 0.2
PAUSE_SECONDS = 0.02


class Committer:
    """A thread that turns written extents into durable, recorded, acknowledged ones.

    Order matters: fdatasync, then the manifest entry, then the acknowledgement.
    `acknowledge` gets the extents of one batch; `failed` gets the error that ends it.
    """

    def __init__(
        self,
        disks: Sequence[ReplicaDisk],
        acknowledge: Callable[[list[ExtentKey]], None],
        failed: Callable[[AgentError], None],
    ) -> None:
        self._disks = disks
        self._acknowledge = acknowledge
        self._failed = failed
        self._condition = threading.Condition()
        # With the digest, and whether it was just read from the disk.
        self._pending: dict[ExtentKey, tuple[bytes, bool]] = {}
        self._bytes = 0
        self._closing = False
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def add(self, key: ExtentKey, digest: bytes, size: int, *, seen: bool = False) -> None:
        """Queue an extent that was just written; waits while two batches are outstanding.

        seen: nothing had to be written, for the disk was just read and holds this.
        """
        with self._condition:
            while self._bytes > 2 * BATCH_BYTES and not self._broken:
                self._condition.wait()
            begins = not self._pending
            self._pending[key] = (digest, seen)
            self._bytes += size
            # What comes in between is seen when the wait for a pause ends.
            if begins or self._full:
                self._condition.notify_all()

    @property
    def _full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._pending) >= BATCH_EXTENTS

    def close(self) -> None:
        """Commit what is queued and end."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                if not batch:
                    return
                self._commit(batch)
        except AgentError as error:
            with self._condition:
                self._broken = True
                self._condition.notify_all()
            self._failed(error)

    def _next_batch(self) -> dict[ExtentKey, tuple[bytes, bool]]:
        with self._condition:
            while not self._pending and not self._closing:
                self._condition.wait()
            deadline = time.monotonic() + BATCH_SECONDS
            while not self._full and not self._closing:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                known = len(self._pending)
                # The end of a pass: whoever waits for it waits for the last batch.
                if not self._condition.wait(min(remaining, PAUSE_SECONDS)) and len(self._pending) == known:
                    break
            batch, self._pending = self._pending, {}
            self._bytes = 0
            self._condition.notify_all()
            return batch

    def _commit(self, batch: dict[ExtentKey, tuple[bytes, bool]]) -> None:
        for disk in {key.disk for key in batch}:
            self._disks[disk].sync()
        for key, (digest, seen) in batch.items():
            replica = self._disks[key.disk]
            replica.manifest.set(key.extent, digest)
            if seen:
                replica.read_back.seen(key.extent)
            else:
                replica.read_back.written(key.extent)
        keys = list(batch)
        for at in range(0, len(keys), wire.MAX_ACKS):
            self._acknowledge(keys[at : at + wire.MAX_ACKS])
