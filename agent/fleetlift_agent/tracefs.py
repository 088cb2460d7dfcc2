# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's tracefs: where it is, and an instance of our own in it (Documentation/trace/ftrace.rst, "Instances")."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetlift_agent.memory import c_library
from fleetlift_agent.trace_format import EventLayout, PageLayout

EVENT = "events/block/block_rq_complete"
MOUNTINFO = Path("/proc/self/mountinfo")
MNT_DETACH = 2
_RELEASE_SECONDS = 5.0
MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8


class TracingUnavailableError(Exception):
    """Writes cannot be observed on this server; the text says why."""


@dataclass(frozen=True)
class TraceRoot:
    """The tracing directory. `descriptor` holds a mount of this agent's own that nobody else can see, or is None."""

    path: Path
    descriptor: int | None

    def close(self) -> None:
        """Undo our own mount, which also ends with the process."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def find_tracefs(directory: Path, *, mountinfo: Path = MOUNTINFO) -> TraceRoot:
    """The tracing directory of this kernel; mounted for this process alone when it is nowhere to be seen.

    `directory` is the agent's own. Raises TracingUnavailableError.
    """
    reasons: list[str] = []
    for path in _mounted(mountinfo):
        reason = _unusable(path)
        if reason is None:
            return TraceRoot(path, None)
        reasons.append(reason)
    own = directory / "tracefs"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Before 4.1 there was no tracefs: debugfs held the directory.
        for kind, path in (("tracefs", own), ("debugfs", own / "tracing")):
            try:
                root = _private(kind, own, path)
            except OSError as error:
                reasons.append(f"{kind} cannot be mounted: {error.strerror}")
                continue
            reason = _unusable(root.path)
            if reason is None:
                return root
            reasons.append(reason)
            root.close()
    finally:
        own.rmdir()
    raise TracingUnavailableError("; ".join(dict.fromkeys(reasons)))


def _private(kind: str, mountpoint: Path, path: Path) -> TraceRoot:
    """Mount, keep hold of the directory `path` in it, and take the mount out of sight at once.

    Whoever removes the agent's directory later, however this process ended, must not find the kernel's files in it.
    """
    _mount(kind, mountpoint)
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        _unmount(mountpoint)
    return TraceRoot(Path(f"/proc/self/fd/{descriptor}"), descriptor)


@dataclass(frozen=True)
class RingCounters:
    """What the kernel counts for the rings of all processors together."""

    overrun: int
    read: int


class Instance:
    """A ring buffer of our own, which traces the completed requests of some disks and nothing else."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "instances" / name

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    def create(self, buffer_kib: int, devices: Sequence[tuple[int, int]]) -> None:
        """Make it, tracing from now on. `buffer_kib` is the ring of each processor. Raises OSError."""
        self.path.mkdir()
        self._write("tracing_on", "0")
        self._write("buffer_size_kb", str(buffer_kib))
        self.trace(devices)

    def trace(self, devices: Sequence[tuple[int, int]]) -> None:
        """Trace these disks from now on, whatever it did before. Raises OSError."""
        self._write(f"{EVENT}/filter", event_filter(devices))
        self._write(f"{EVENT}/enable", "1")
        self._write("tracing_on", "1")

    def leave_out_reads(self, devices: Sequence[tuple[int, int]]) -> None:
        """Spare the ring what changes nothing, where the kernel's filters can say "not" (Linux 4.0). Raises OSError."""
        try:
            self._write(f"{EVENT}/filter", changes_filter(devices))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # An older kernel has switched its filter off together with the refusal.
            self._write(f"{EVENT}/filter", event_filter(devices))

    def remove(self) -> None:
        """Remove it, and what an agent that was killed left of it."""
        if self.exists:
            self._write("tracing_on", "0")
            self._write(f"{EVENT}/enable", "0")
            deadline = time.monotonic() + _RELEASE_SECONDS
            while True:
                try:
                    self.path.rmdir()
                    return
                except OSError as error:
                    # An agent that was just killed may not have let go of its files yet.
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                time.sleep(0.05)

    def complaint(self, devices: Sequence[tuple[int, int]]) -> str | None:
        """Why it does not trace these disks at this moment; None when it does."""
        try:
            if self.read("tracing_on") != "1":
                return "tracing was switched off in the instance"
            if self.read(f"{EVENT}/enable")[:1] != "1":
                return "the event was disabled in the instance"
            if self.read(f"{EVENT}/filter") not in (event_filter(devices), changes_filter(devices)):
                return "the filter of the instance was changed"
        except OSError as error:
            return f"the instance cannot be read: {error.strerror}"
        return None

    def counters(self) -> RingCounters:
        """The counters of the rings. Raises OSError."""
        overrun = read = 0
        for ring in self.rings():
            values = parse_stats((ring / "stats").read_text(encoding="ascii"))
            # What was overwritten, what did not fit between nested interrupts, and what a full ring refused.
            overrun += sum(values.get(name, 0) for name in ("overrun", "commit overrun", "dropped events"))
            read += values.get("read events", 0)
        return RingCounters(overrun, read)

    def rings(self) -> Iterator[Path]:
        return (path for path in sorted((self.path / "per_cpu").iterdir()) if path.name.startswith("cpu"))

    def layouts(self) -> tuple[PageLayout, EventLayout]:
        """Raises OSError, and TraceFormatError when the kernel's event is of an unknown shape."""
        # The instance has no header_page of its own; it belongs to the kernel.
        header = (self.path.parent.parent / "events/header_page").read_text(encoding="ascii")
        page = PageLayout.parse(header)
        return page, EventLayout.parse((self.path / EVENT / "format").read_text(encoding="ascii"))

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="ascii").strip()

    def _write(self, name: str, value: str) -> None:
        (self.path / name).write_text(value, encoding="ascii")


def event_filter(devices: Sequence[tuple[int, int]]) -> str:
    """The filter for whole disks, given by (major, minor). The kernel keeps dev_t as 12 and 20 bits in an event."""
    return " || ".join(f"dev == {kernel_number(*device)}" for device in devices)


def changes_filter(devices: Sequence[tuple[int, int]]) -> str:
    """The filter for everything on whole disks but reads: "R" is the first letter of a read and of nothing else."""
    return f'({event_filter(devices)}) && !(rwbs ~ "R*")'


def kernel_number(major: int, minor: int) -> int:
    """MKDEV of include/linux/kdev_t.h, which is not the encoding of stat(2)."""
    return major << 20 | minor


def parse_stats(text: str) -> dict[str, int]:
    """The whole numbers of a per_cpu/*/stats file."""
    values = {}
    for line in text.splitlines():
        name, _colon, value = line.partition(":")
        if value.strip().isdigit():
            values[name.strip()] = int(value)
    return values


def _mounted(mountinfo: Path) -> list[Path]:
    """Where tracing directories are mounted already (proc(5)), tracefs before debugfs."""
    found = []
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _dash, after = line.partition(" - ")
        kind = after.split(" ")[0]
        path = Path(before.split(" ")[4].encode("ascii", "surrogateescape").decode("unicode_escape"))
        if kind == "tracefs":
            found.append((0, path))
        elif kind == "debugfs":
            found.append((1, path / "tracing"))
    return [path for _order, path in sorted(found, key=lambda pair: pair[0])]


def _unusable(path: Path) -> str | None:
    try:
        if not (path / "instances").is_dir():
            return f"{path} has no instances: the kernel is older than 3.10 or built without tracing"
        if not (path / EVENT).is_dir():
            return "the kernel has no event block:block_rq_complete"
        # Under lockdown the files are there and cannot be opened.
        EventLayout.parse((path / EVENT / "format").read_text(encoding="ascii"))
    except OSError as error:
        return f"{path} cannot be used: {error.strerror} (lockdown, or not the right to trace)"
    except ValueError as error:
        return str(error)
    return None


def _mount(kind: str, target: Path) -> None:
    library = c_library()
    if library.mount(kind.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(MS_NOSUID_NODEV_NOEXEC), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _unmount(target: Path) -> None:
    library = c_library()
    if library.umount2(os.fsencode(target), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
