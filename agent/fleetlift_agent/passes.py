# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pass reads: the extents of a pass, handed out once each, and given back when a connection dies."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Callable, Protocol

from fleetlift_agent.extents import extent_count, extent_length
from fleetlift_agent.wire import ExtentKey

# (offset, length) pairs inside an extent, ascending, in bytes.
Ranges = tuple[tuple[int, int], ...]


class DirtySource(Protocol):
    """Says which extents a pass has to read, and what of them."""

    def extents(self) -> Iterator[ExtentKey]: ...

    def ranges(self, key: ExtentKey) -> Ranges: ...


class WholeDisks:
    """Without change tracking every extent may have changed."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes

    def extents(self) -> Iterator[ExtentKey]:
        for disk in range(len(self._sizes)):
            yield from self.of_disk(disk)

    def of_disk(self, disk: int) -> Iterator[ExtentKey]:
        return (ExtentKey(disk, extent) for extent in range(extent_count(self._sizes[disk])))

    def ranges(self, key: ExtentKey) -> Ranges:
        return ((0, extent_length(self._sizes[key.disk], key.extent)),)


class NothingNew:
    """A pass over nothing but what it is asked to do again."""

    def extents(self) -> Iterator[ExtentKey]:
        return iter(())

    def ranges(self, _key: ExtentKey) -> Ranges:
        return ()


@dataclass
class Counters:
    """Bytes of one pass. sent is content before compression, wire is everything handed to TLS.

    changed: sub-blocks that differed from the target (data and zero), and extents of zeros where it was not known what
    the target holds; skipped: what was read and the target had already; free: what is not used, and was not read.
    """

    bytes_read: int = 0
    bytes_changed: int = 0
    bytes_sent: int = 0
    bytes_wire: int = 0
    bytes_skipped: int = 0
    bytes_zero: int = 0
    bytes_free: int = 0


class PassWork:
    """The extents of one pass. An extent is open from `take` until `finish`; thread-safe.

    total: the bytes that the pass is expected to look at.
    """

    def __init__(
        self, number: int, kind: str, source: DirtySource, sizes: Sequence[int], total: int | None = None
    ) -> None:
        self.number = number
        self.kind = kind
        self.counters = Counters()
        self.bytes_done = 0
        self.total = sum(sizes) if total is None else total
        self.started = time.time()
        self._begun = time.monotonic()
        self._everything = WholeDisks(sizes)
        self._source = source
        self._coming = source.extents()
        # An ordered set: what has to be handed out again.
        self._again: dict[ExtentKey, None] = {}
        # Of these the whole extent is wanted, whatever the source says.
        self._whole: set[ExtentKey] = set()
        # And of these disks: what of them is still to be handed out.
        self._whole_disks: dict[int, Iterator[ExtentKey]] = {}
        # With the bytes that each counts.
        self._open: dict[ExtentKey, int] = {}
        self._exhausted = False
        self._condition = threading.Condition()

    def take(self) -> tuple[ExtentKey, Ranges] | None:
        """The next extent and what to read of it, or None when all were handed out for now."""
        with self._condition:
            key = self._next()
            if key is None:
                if not self._exhausted and not self._again:
                    self._exhausted = True
                    # Once: readers that wait here would wake each other for as long as anything is open.
                    self._condition.notify_all()
                return None
            ranges = self._ranges(key)
            self._open[key] = sum(length for _offset, length in ranges)
            return key, ranges

    def finish(self, key: ExtentKey) -> None:
        """The target is known to hold this extent as it was read."""
        with self._condition:
            self.bytes_done += self._open.pop(key, 0)
            self._whole.discard(key)
            if not self._open:
                self._condition.notify_all()

    def whole(self, key: ExtentKey) -> None:
        """An open extent of which a part is not enough: hand it out again, all of it."""
        with self._condition:
            self._open.pop(key, None)
            self._whole.add(key)
            self._again[key] = None
            self._exhausted = False
            self._condition.notify_all()

    def requeue_open(self) -> None:
        """Nothing that is open was confirmed: hand it out again."""
        with self._condition:
            self._again.update(dict.fromkeys(self._open))
            self._open.clear()
            self._exhausted = False

    def redo(
        self,
        keys: Iterable[ExtentKey],
        disks: Iterable[int] = (),
        lacks: Callable[[ExtentKey], bool] = lambda _key: True,
    ) -> None:
        """Extents, and what it lacks of whole disks, that the target turned out not to have any more."""
        with self._condition:
            for key in keys:
                self._whole.add(key)
                if key not in self._again:
                    self._again[key] = None
                    self.total += self._everything.ranges(key)[0][1]
                self._exhausted = False
            for disk in disks:
                # Once, however often the connection is lost meanwhile: what was sent since is not lacking any more.
                self._whole_disks[disk] = filter(lacks, self._everything.of_disk(disk))
                self._exhausted = False

    def _next(self) -> ExtentKey | None:
        key = next((key for key in self._again if key not in self._open), None)
        if key is not None:
            del self._again[key]
            return key
        for key in itertools.chain(self._coming, *self._whole_disks.values()):
            if key not in self._open:
                return key
            # Handed out again before the pass reached it in its order, and not finished yet: what changed meanwhile was
            # taken with this key, so it is read once more.
            self._again[key] = None
        return None

    def _ranges(self, key: ExtentKey) -> Ranges:
        if key in self._whole or key.disk in self._whole_disks:
            return self._everything.ranges(key)
        return self._source.ranges(key)

    @property
    def wanted_whole(self) -> list[ExtentKey]:
        """Extents that were to be read as a whole and are not finished."""
        with self._condition:
            return list(self._whole)

    @property
    def wanted_disks(self) -> list[int]:
        """Disks that were to be gone through, of which something may not be finished."""
        with self._condition:
            return list(self._whole_disks)

    def count(self, **amounts: int) -> None:
        with self._condition:
            for name, amount in amounts.items():
                setattr(self.counters, name, getattr(self.counters, name) + amount)

    def wait(self, seconds: float) -> bool:
        """Whether every extent is finished; waits up to `seconds` for it."""
        with self._condition:
            if not (self._exhausted and not self._open):
                self._condition.wait(seconds)
            return self._exhausted and not self._open

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def result(self) -> dict[str, Any]:
        """The pass as state.json records it."""
        return {
            "number": self.number,
            "kind": self.kind,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            **asdict(self.counters),
        }


def worth_another_pass(passes: Sequence[dict[str, Any]], *, max_passes: int, max_downtime: float) -> bool:
    """Whether one more pass over the whole disks would shorten the downtime, where changes are not tracked.

    The final pass reads every disk once, as the last pass did, so its duration predicts
    the downtime. Stop when that fits and little changed, when passes no longer
    shrink, or after `max_passes`.
    """
    if len(passes) >= max_passes:
        return False
    if len(passes) < 2:
        return True
    last, before = passes[-1], passes[-2]
    small = last["bytes_changed"] <= 0.01 * max(1, last["bytes_read"])
    if small and last["seconds"] <= max_downtime:
        return False
    if before["kind"] != "delta":
        return True
    return bool(last["bytes_changed"] < 0.8 * before["bytes_changed"])
