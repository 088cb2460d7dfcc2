# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change tracking without a kernel module: completed requests from a private tracefs instance, into the dirty map.

Why this is exact: the kernel traces a request when its data is on the disk and before its submitter learns of it. So a
write that a caller saw complete is in the ring; `drain` empties the ring into the map; and a pass clears the bits of an
extent before it reads it. A write that lands during the read sets its bit after that, and the next pass reads it again.
Whatever shakes this (lost events, a changed instance, a resized disk) turns into a rescan of the disks concerned.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import mmap
import os
import platform
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fleetlift_agent.devices import activity_of, appearance_of, device_size
from fleetlift_agent.dirty import DirtyExtents, DirtyMap
from fleetlift_agent.memory import c_library
from fleetlift_agent.passes import DirtySource, Ranges, WholeDisks
from fleetlift_agent.state import read_boot_id, write_json
from fleetlift_agent.trace_format import SECTOR, Decoder, Page, TraceFormatError
from fleetlift_agent.tracefs import Instance, TraceRoot, TracingUnavailableError, find_tracefs, kernel_number
from fleetlift_agent.wire import ExtentKey

log = logging.getLogger(__name__)

# Reasons of a rescan, as state.json carries them.
EVENTS_LOST = "EVENTS_LOST"
RING_CLEARED = "RING_CLEARED"
INSTANCE_CHANGED = "INSTANCE_CHANGED"
READER_DIED = "READER_DIED"
READER_STALLED = "READER_STALLED"
EVENT_UNREADABLE = "EVENT_UNREADABLE"
OUT_OF_RANGE = "OUT_OF_RANGE"
DISK_RESIZED = "DISK_RESIZED"
AGENT_INTERRUPTED = "AGENT_INTERRUPTED"

DEFAULT_BUFFER_KIB = 16 << 10
DEFAULT_MAP_LIMIT = 1 << 30
_INTERVAL = 0.1
_HEALTH_INTERVAL = 1.0
_STALLED = 10.0

# Linux system call numbers of membarrier(2), since 4.3.
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "ppc64le": 365, "s390x": 356, "riscv64": 283}
_MEMBARRIER_CMD_GLOBAL = 1


@dataclass(frozen=True)
class TrackedDisk:
    """A whole disk: how the migration calls it, its node, its (major, minor), and its size in bytes.

    appearance: see `devices.appearance_of`. target: the serial of the disk that it is copied to.
    """

    id: str
    device: Path
    number: tuple[int, int]
    size: int
    appearance: int = 0
    target: str = ""

    @classmethod
    def open(cls, id: str, device: Path, size: int, target: str = "") -> TrackedDisk:
        number = device.stat().st_rdev
        return cls(id, device, (os.major(number), os.minor(number)), size, appearance_of(number), target)


@dataclass(frozen=True)
class TrackerState:
    """What state.json tells about change tracking. `mode` is "tracking" or "rehash"; dirty is bytes for each disk."""

    mode: str
    reason: str | None
    attached: bool = False
    events: int = 0
    bytes_changed: int = 0
    lost: int = 0
    stalls: int = 0
    rescans: dict[str, int] = field(default_factory=dict)
    rescan: list[str] = field(default_factory=list)
    detail: str | None = None
    dirty: dict[str, int] = field(default_factory=dict)
    map_memory: int = 0
    ring_memory: int = 0

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Tracker(Protocol):
    """What a sender needs of change tracking."""

    def drain(self) -> None:
        """Have every write that completed before this call in the map."""

    def changes(self) -> DirtySource:
        """What to read in a pass that begins now."""

    def settle(self) -> None:
        """The target holds everything that was handed out."""

    def give_back(self) -> None:
        """The pass was given up: hand it out again."""

    def rescan(self, disk: int) -> None:
        """Read this disk in full again."""

    def mark(self, disk: int, start: int, end: int) -> None:
        """These bytes of the disk are to be sent in the next pass."""

    def scanning(self, disk: int) -> bool:
        """Whether a pass that runs, or the next one, reads all of this disk."""

    def changed(self, key: ExtentKey, ranges: Ranges) -> bool:
        """Whether all of these ranges of an extent wait for a pass."""

    def pending(self) -> Iterator[tuple[ExtentKey, Ranges]]:
        """What waits for a pass, without taking it; nothing for a disk that waits as a whole."""

    def dirty_bytes(self) -> int:
        """Bytes that a pass beginning now would read."""

    def state(self) -> TrackerState: ...

    def close(self, *, remove: bool) -> None:
        """Stop; with `remove` leave no trace in the kernel, without it the ring goes on for the next agent."""


class NullTracker:
    """Where writes cannot be observed, everything may have changed in every pass."""

    def __init__(self, disks: Sequence[TrackedDisk], reason: str) -> None:
        self._disks = tuple(disks)
        self.reason = reason

    def drain(self) -> None:
        """There is nothing to wait for."""

    def changes(self) -> DirtySource:
        return WholeDisks([disk.size for disk in self._disks])

    def settle(self) -> None:
        """Nothing is remembered."""

    def give_back(self) -> None:
        """Nothing is remembered."""

    def rescan(self, disk: int) -> None:
        """Every pass is one."""

    def mark(self, disk: int, start: int, end: int) -> None:
        """Every pass reads everything."""

    def scanning(self, disk: int) -> bool:
        return True

    def changed(self, key: ExtentKey, ranges: Ranges) -> bool:
        return True

    def pending(self) -> Iterator[tuple[ExtentKey, Ranges]]:
        return iter(())

    def dirty_bytes(self) -> int:
        return sum(disk.size for disk in self._disks)

    def state(self) -> TrackerState:
        sizes = {disk.id: disk.size for disk in self._disks}
        return TrackerState("rehash", self.reason, rescan=list(sizes), dirty=sizes)

    def close(self, *, remove: bool) -> None:
        """There is nothing to remove."""


def probe(directory: Path) -> str | None:
    """Why writes cannot be tracked on this server; None when they can. Leaves nothing behind."""
    try:
        root = find_tracefs(directory)
    except TracingUnavailableError as error:
        return str(error)
    except OSError as error:
        return f"tracefs cannot be reached: {error}"
    try:
        instance = Instance(root.path, f"fleetlift-probe-{os.getpid()}")
        try:
            instance.create(64, [(0, 0)])
            instance.layouts()
        finally:
            instance.remove()
    except (OSError, TraceFormatError) as error:
        return f"a trace instance cannot be made: {error}"
    finally:
        root.close()
    return None


def remove_trace(directory: Path, migration: str, disks: Sequence[TrackedDisk]) -> bool:
    """Remove what a tracker that was not closed left in the kernel; whether there was something."""
    try:
        root = find_tracefs(directory)
    except (TracingUnavailableError, OSError):
        # Where nothing can be traced nothing was left.
        return False
    try:
        instance = Instance(root.path, instance_name(migration, disks))
        existed = instance.exists
        instance.remove()
    finally:
        root.close()
    return existed


def open_tracker(
    directory: Path,
    migration: str,
    disks: Sequence[TrackedDisk],
    *,
    buffer_kib: int = DEFAULT_BUFFER_KIB,
    map_limit: int = DEFAULT_MAP_LIMIT,
) -> Tracker:
    """Continue what an earlier agent tracked, or start anew, or say that nothing can be tracked.

    `directory` is the agent's own, on a tmpfs. `buffer_kib` is the ring of each processor, made smaller where memory is
    short; `map_limit` bounds the dirty map in bytes. Call it before the first read of a disk.
    """
    try:
        attached = ChangeTracker.attach(directory, migration, disks, map_limit=map_limit)
        return attached or ChangeTracker.start(
            directory, migration, disks, buffer_kib=affordable(buffer_kib), map_limit=map_limit
        )
    except (TracingUnavailableError, TraceFormatError) as error:
        return NullTracker(disks, str(error))
    except OSError as error:
        return NullTracker(disks, f"the trace instance cannot be used: {error}")


def affordable(buffer_kib: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """The ring of each processor in KiB, so that all of them use at most a sixteenth of the memory that is free."""
    values = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    # MemAvailable came with Linux 3.14.
    free = int(values.get("MemAvailable", values["MemFree"]).split()[0])
    return max(256, min(buffer_kib, free // 16 // (os.cpu_count() or 1)))


class ChangeTracker:
    """Follows the writes to whole disks. Made by `start` or `attach`; see Tracker for what each method promises."""

    def __init__(
        self,
        directory: Path,
        root: TraceRoot,
        instance: Instance,
        disks: Sequence[TrackedDisk],
        dirty: DirtyMap,
        *,
        attached: bool,
        counters: tuple[int, int],
    ) -> None:
        self._directory = directory
        self._root = root
        self._instance = instance
        self._disks = tuple(disks)
        self._numbers = [disk.number for disk in disks]
        self._by_device = {kernel_number(*disk.number): index for index, disk in enumerate(disks)}
        self.dirty = dirty
        self._attached = attached
        self._overrun, self._read = counters
        self._events = self._bytes = self._lost = self._stalls = 0
        self._rescans: Counter[str] = Counter()
        self._detail: str | None = None
        self._seen: set[int] = set()
        self._failed: str | None = None
        # What was complained about already: a lasting fault is counted once, and still answered each time.
        self._standing: str | None = None
        self._resized: set[int] = set()
        self._reading = threading.Lock()
        self._stopping = threading.Event()
        self._beat = time.monotonic()
        self._rings: list[int] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_rings)
            page, event = instance.layouts()
            self._decoder = Decoder(page, event)
            self._open_rings()
            self._buffer_kib = int(instance.read("buffer_total_size_kb"))
            self._ring_count = len(self._rings)
            self._pages = max(2, (self._buffer_kib << 10) // page.size + 2 * self._ring_count)
            self._devices: list[int] = []
            for disk in disks:
                fd = os.open(disk.device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                self._devices.append(fd)
            self._descriptors = stack.pop_all()
        self._thread = threading.Thread(target=self._follow, name="tracer", daemon=True)

    @classmethod
    def start(
        cls,
        directory: Path,
        migration: str,
        disks: Sequence[TrackedDisk],
        *,
        buffer_kib: int = DEFAULT_BUFFER_KIB,
        map_limit: int = DEFAULT_MAP_LIMIT,
    ) -> ChangeTracker:
        """Start with nothing known: every disk waits for its first full read.

        Raises TracingUnavailableError when the kernel cannot, or a disk whose requests it does not trace is among them.
        """
        root = find_tracefs(directory)
        instance = Instance(root.path, instance_name(migration, disks))
        try:
            instance.remove()
            dirty = DirtyMap(directory / "dirty", [disk.size for disk in disks], limit=map_limit)
            instance.create(buffer_kib, [disk.number for disk in disks])
            tracker = cls(directory, root, instance, disks, dirty, attached=False, counters=(0, 0))
            try:
                tracker._check_every_disk_is_traced()
                instance.leave_out_reads(tracker._numbers)
            except BaseException:
                tracker._release()
                raise
            tracker._remember()
            tracker._thread.start()
            return tracker
        except BaseException:
            with contextlib.suppress(OSError):
                # What brought us here is the error to report.
                instance.remove()
            root.close()
            raise

    @classmethod
    def attach(
        cls, directory: Path, migration: str, disks: Sequence[TrackedDisk], *, map_limit: int = DEFAULT_MAP_LIMIT
    ) -> ChangeTracker | None:
        """Continue after a restarted agent, with the ring and the map it left; None when there is nothing to trust."""
        try:
            record = json.loads((directory / "dirty/tracker.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        identity = _identity(instance_name(migration, disks), disks)
        counted = {name: record.get(name) for name in ("overrun", "read", "activity")}
        if record != {**identity, **counted} or _restarted(counted["activity"], _activity(disks)):
            return None
        root = find_tracefs(directory)
        instance = Instance(root.path, instance_name(migration, disks))
        try:
            if not instance.exists or instance.complaint([disk.number for disk in disks]) is not None:
                root.close()
                return None
            dirty = DirtyMap(directory / "dirty", [disk.size for disk in disks], limit=map_limit, resume=True)
            counters = (int(record["overrun"]), int(record["read"]))
            tracker = cls(directory, root, instance, disks, dirty, attached=True, counters=counters)
        except BaseException:
            root.close()
            raise
        if dirty.interrupted:
            tracker._rescan_all(AGENT_INTERRUPTED, "an earlier agent died between reading events and noting them")
        tracker._check_health()
        tracker._thread.start()
        return tracker

    def drain(self) -> None:
        if not self._thread.is_alive() and not self._stopping.is_set():
            self._rescan_all(READER_DIED, self._failed or "the thread that reads the trace ring ended", standing=True)
        _wait_for_running_tracepoints()
        if not self._reading.acquire(timeout=_STALLED):
            self._rescan_all(READER_STALLED, f"the trace ring could not be read for {_STALLED:g} seconds")
            return
        try:
            self._read_rings()
            self._check_health()
        except (OSError, TraceFormatError) as error:
            self._rescan_all(EVENT_UNREADABLE, str(error))
        finally:
            self._reading.release()

    def changes(self) -> DirtySource:
        return DirtyExtents(self.dirty)

    def settle(self) -> None:
        self.dirty.settle()

    def give_back(self) -> None:
        self.dirty.give_back()

    def rescan(self, disk: int) -> None:
        self.dirty.rescan(disk)

    def mark(self, disk: int, start: int, end: int) -> None:
        if not self.dirty.mark(disk, start, end - start):
            self._rescan(disk, OUT_OF_RANGE, f"the bytes {start} to {end} did not fit the dirty map")

    def scanning(self, disk: int) -> bool:
        return self.dirty.scanning(disk)

    def changed(self, key: ExtentKey, ranges: Ranges) -> bool:
        return self.dirty.changed(key.disk, key.extent, ranges)

    def pending(self) -> Iterator[tuple[ExtentKey, Ranges]]:
        return self.dirty.pending()

    def dirty_bytes(self) -> int:
        return sum(self.dirty.dirty_bytes(disk) for disk in range(len(self._disks)))

    def state(self) -> TrackerState:
        return TrackerState(
            "tracking",
            None,
            attached=self._attached,
            events=self._events,
            bytes_changed=self._bytes,
            lost=self._lost,
            stalls=self._stalls,
            rescans=dict(self._rescans),
            rescan=[disk.id for index, disk in enumerate(self._disks) if self.dirty.wants_rescan(index)],
            detail=self._detail,
            dirty={disk.id: self.dirty.dirty_bytes(index) for index, disk in enumerate(self._disks)},
            map_memory=self.dirty.memory,
            ring_memory=self._buffer_kib << 10,
        )

    def close(self, *, remove: bool) -> None:
        self._release()
        if remove:
            self._instance.remove()
            self._root.close()
            shutil.rmtree(self._directory / "dirty")

    def _open_rings(self) -> None:
        for ring in self._instance.rings():
            self._rings.append(os.open(ring / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def _close_rings(self) -> None:
        while self._rings:
            os.close(self._rings.pop())

    def _release(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._descriptors.close()
        self.dirty.close()

    def _follow(self) -> None:
        """The life of the reader thread."""
        checked = 0.0
        try:
            while not self._stopping.wait(_INTERVAL):
                with self._reading:
                    self._notice_stall()
                    self._read_rings()
                    if time.monotonic() - checked >= _HEALTH_INTERVAL:
                        self._check_health()
                        self._remember()
                        checked = time.monotonic()
        except (OSError, ValueError) as error:
            self._failed = f"the thread that reads the trace ring ended: {error}"
            self._rescan_all(READER_DIED, self._failed, standing=True)

    def _read_rings(self) -> None:
        size = self._decoder.page.size
        # A ring holds no more than its pages: whoever writes meanwhile does not keep us here.
        left = self._pages
        self.dirty.begin_read()
        for fd in self._rings:
            while left:
                try:
                    data = os.read(fd, size)
                except BlockingIOError:
                    break
                if not data:
                    break
                left -= 1
                self._note(self._decode(data))
        # An exception leaves the map marked as behind the ring, which is what it is.
        self.dirty.end_read()

    def _decode(self, data: bytes) -> Page:
        try:
            return self._decoder.decode(data)
        except TraceFormatError as error:
            self._rescan_all(EVENT_UNREADABLE, str(error))
            return Page()

    def _note(self, page: Page) -> None:
        if page.lost:
            # How many is what _check_health adds up, from the kernel's own counters.
            self._rescan_all(EVENTS_LOST, "the kernel marked a gap in the trace ring")
        mark, by_device = self.dirty.mark, self._by_device
        for device, sector, sectors in page.changes:
            disk = by_device.get(device)
            if disk is None:
                # A kernel may pass everything while its filter is replaced.
                continue
            self._bytes += sectors * SECTOR
            if not mark(disk, sector * SECTOR, sectors * SECTOR):
                self._rescan(disk, OUT_OF_RANGE, f"a write at sector {sector} did not fit the dirty map")
        for device in page.unbounded:
            if device in by_device:
                self._rescan(by_device[device], EVENT_UNREADABLE, "a zone was reset")
        self._events += page.events
        self._seen |= page.devices

    def _notice_stall(self) -> None:
        now = time.monotonic()
        if now - self._beat > _STALLED:
            # Nothing is lost as long as the ring had room; that is what _check_health looks at.
            self._stalls += 1
            self._detail = f"the trace ring was not read for {now - self._beat:.0f} seconds"
        self._beat = now

    def _check_health(self) -> None:
        complaint = self._instance.complaint(self._numbers)
        if complaint is None and len(self._rings) != self._ring_count:
            complaint = "the rings could not be opened"
        if complaint is not None:
            # Before it is done as well: an agent that dies meanwhile leaves an instance that looks sound.
            for disk in range(len(self._disks)):
                self.dirty.rescan(disk)
            if not self._renew():
                self._rescan_all(INSTANCE_CHANGED, self._standing or complaint, standing=True)
                return
            # After that: what is read from now on is read while changes are tracked again.
            self._rescan_all(INSTANCE_CHANGED, complaint)
        self._standing = None
        counters = self._instance.counters()
        if counters.read < self._read or counters.overrun < self._overrun:
            self._rescan_all(RING_CLEARED, "somebody cleared the trace ring")
        elif counters.overrun > self._overrun:
            self._lost += counters.overrun - self._overrun
            self._rescan_all(EVENTS_LOST, f"the trace ring overflowed: {counters.overrun - self._overrun} events")
        self._overrun, self._read = counters.overrun, counters.read
        for index, fd in enumerate(self._devices):
            self._check_size(index, fd)

    def _renew(self) -> bool:
        """Have the instance that somebody changed trace again, or another in its place; whether that could be done."""
        try:
            if self._instance.exists:
                # It may be held by whoever changed it, and could not be removed.
                self._instance.trace(self._numbers)
            else:
                self._close_rings()
                self._instance.create(max(1, self._buffer_kib // max(1, self._ring_count)), self._numbers)
                self._overrun = self._read = 0
            self._instance.leave_out_reads(self._numbers)
            if len(self._rings) != self._ring_count:
                self._close_rings()
                self._open_rings()
        except OSError as error:
            log.warning("the trace instance cannot be made to trace again: %s", error)
            return False
        return self._instance.complaint(self._numbers) is None

    def _check_size(self, index: int, fd: int) -> None:
        try:
            size = device_size(fd)
        except OSError:
            size = 0
        if size == self._disks[index].size:
            self._resized.discard(index)
            return
        self.dirty.rescan(index)
        if index not in self._resized:
            self._resized.add(index)
            self._rescan(index, DISK_RESIZED, f"{self._disks[index].device} has {size} bytes now")

    def _rescan_all(self, reason: str, detail: str, *, standing: bool = False) -> None:
        for disk in range(len(self._disks)):
            self.dirty.rescan(disk)
        if standing and self._standing == detail:
            return
        self._standing = detail if standing else self._standing
        self._rescans[reason] += 1
        self._detail = detail

    def _rescan(self, disk: int, reason: str, detail: str) -> None:
        self.dirty.rescan(disk)
        self._rescans[reason] += 1
        self._detail = detail

    def _remember(self) -> None:
        """Keep what `attach` compares: counters that only ever grow, so that an old record is on the safe side."""
        identity = _identity(self._instance.path.name, self._disks)
        counted = {"overrun": self._overrun, "read": self._read, "activity": _activity(self._disks)}
        write_json(self._directory / "dirty/tracker.json", {**identity, **counted})

    def _check_every_disk_is_traced(self) -> None:
        """Read a block of every disk and see it in the ring: some drivers (bio-based ones) are not traced so."""
        for disk, fd in zip(self._disks, self._devices):
            with mmap.mmap(-1, 4096) as buffer:
                os.preadv(fd, [buffer], 0)
            _wait_for_running_tracepoints()
            self._read_rings()
            if kernel_number(*disk.number) not in self._seen:
                raise TracingUnavailableError(
                    f"{disk.device} is driven in a way that the kernel's block_rq_complete event does not show"
                )


def instance_name(migration: str, disks: Sequence[TrackedDisk]) -> str:
    """Unique to the disks too: several systems in namespaces share one kernel, and may use the same names."""
    numbers = ",".join(f"{major}:{minor}" for major, minor in (disk.number for disk in disks))
    return f"fleetlift-{migration}-{hashlib.sha256(numbers.encode()).hexdigest()[:8]}"


def _identity(name: str, disks: Sequence[TrackedDisk]) -> dict[str, Any]:
    return {
        "schema": 2,
        "boot_id": read_boot_id(),
        "instance": name,
        # A disk that was away meanwhile was perhaps written elsewhere, and comes back under its number. And what was
        # sent to another target says nothing of this one.
        "disks": [[disk.id, *disk.number, disk.size, disk.appearance, disk.target] for disk in disks],
    }


def _activity(disks: Sequence[TrackedDisk]) -> list[list[int]]:
    return [activity_of(os.makedev(*disk.number)) for disk in disks]


def _restarted(before: Any, now: list[list[int]]) -> bool:
    """Whether a disk counts from the beginning: it is another one, or was away, whatever else says it is the same."""
    pairs = zip(before or [], now)
    return any(later < earlier for counts in pairs for earlier, later in zip(*counts))


def _wait_for_running_tracepoints() -> None:
    """Return when every processor has left the code that it was in, so that an event half written is whole.

    membarrier(2) waits for that (an RCU grace period, some milliseconds); elsewhere a moment of sleep is as long.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is not None and _syscall(number) == 0:
        return
    time.sleep(0.05)


def _syscall(number: int) -> int:
    return int(c_library().syscall(ctypes.c_long(number), ctypes.c_int(_MEMBARRIER_CMD_GLOBAL), 0, 0))
