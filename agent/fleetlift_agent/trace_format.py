# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Block events in the kernel's trace ring: from bytes to writes, with the layout that the running kernel states.

Sources: Documentation/trace/ftrace.rst and events.rst (format files), include/linux/ring_buffer.h (enum
ring_buffer_type), kernel/trace/ring_buffer.c (RB_MISSED_EVENTS, struct buffer_data_page), kernel/trace/blktrace.c
(blk_fill_rwbs).
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import dataclass, field

SECTOR = 512

_FIELD = re.compile(
    r"field:\s*(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);(?:\s*signed:(?P<signed>[01]);)?"
)
_NAME = re.compile(r"(\w+)(?:\[\w*\])?$")
_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}

# enum ring_buffer_type; up to 28 it is the length of the event in words.
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
# The length lives in the low bits of `commit`; the flags say that events before this page were overwritten.
_COMMIT_MASK = (1 << 27) - 1
_MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30


class TraceFormatError(ValueError):
    """A format or a page is not what the kernel's documentation says."""


@dataclass(frozen=True)
class Field:
    """Where a field is, in bytes."""

    offset: int
    size: int


def parse_fields(text: str) -> dict[str, Field]:
    """The fields that an event's `format` file, or `header_page`, declares."""
    fields: dict[str, Field] = {}
    for match in _FIELD.finditer(text):
        name = _NAME.search(match["declaration"].strip())
        if name:
            fields[name[1]] = Field(int(match["offset"]), int(match["size"]))
    return fields


@dataclass(frozen=True)
class PageLayout:
    """What `events/header_page` says about a page of the ring. All values are bytes."""

    size: int
    commit: struct.Struct
    commit_offset: int
    data_offset: int

    @classmethod
    def parse(cls, text: str) -> PageLayout:
        fields = parse_fields(text)
        try:
            commit, data = fields["commit"], fields["data"]
            return cls(data.offset + data.size, struct.Struct("=" + _INTEGERS[commit.size]), commit.offset, data.offset)
        except KeyError as error:
            raise TraceFormatError(f"header_page has no usable field {error}") from error


@dataclass(frozen=True)
class EventLayout:
    """The fields of one kernel's block_rq_complete that matter here, read with one unpack."""

    id: int
    fields: struct.Struct
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> EventLayout:
        """Read an event's `format` file. Raises TraceFormatError when a field is missing or of an unknown size."""
        fields = parse_fields(text)
        identity = re.search(r"^ID:\s*(\d+)", text, re.MULTILINE)
        name = re.search(r"^name:\s*(\S+)", text, re.MULTILINE)
        if identity is None or name is None:
            raise TraceFormatError("the event's format has no name and ID")
        wanted = ("common_type", "dev", "sector", "nr_sector", "rwbs")
        missing = [one for one in wanted if one not in fields]
        if missing:
            raise TraceFormatError(f"the event {name[1]} has no field {', '.join(missing)}")
        codes = ["="]
        position = 0
        # Unpacked in the order of `wanted`, which is the order of the offsets on every kernel so far; checked here.
        for one in wanted:
            part = fields[one]
            code = f"{part.size}s" if one == "rwbs" else _INTEGERS.get(part.size)
            if code is None or part.offset < position:
                raise TraceFormatError(f"the field {one} of {name[1]} is at {part.offset} with {part.size} bytes")
            codes.append(f"{part.offset - position}x{code}")
            position = part.offset + part.size
        return cls(int(identity[1]), struct.Struct("".join(codes)), name[1])


@dataclass
class Page:
    """What one page of the ring held."""

    # (number of the disk as the kernel writes dev_t, first sector, sectors)
    changes: list[tuple[int, int, int]] = field(default_factory=list)
    # Disks where a whole zone, or more than can be told, was changed.
    unbounded: set[int] = field(default_factory=set)
    # Every disk that an event was about, reads included.
    devices: set[int] = field(default_factory=set)
    # Data events of any kind; the kernel counts them as "read events".
    events: int = 0
    # Events that the kernel says it overwrote before this page; -1 when it does not say how many.
    lost: int = 0


def changes_disk(rwbs: bytes) -> bool:
    """Whether a request of this kind may change the disk.

    Only what is known to change nothing is left out: reads and flushes without data. Write-zeroes and passed-through
    commands have had no letter of their own ("N"), so that "unknown" has to count.
    """
    if rwbs[:1] == b"R":
        return False
    # A flush before the request is an F in front of the operation; the operation "flush" is an F alone (or FF).
    operation = rwbs.lstrip(b"F")
    return bool(operation[:1].strip(b"\0")) and operation[:1] != b"R"


class Decoder:
    """Decodes pages of the ring as trace_pipe_raw hands them out."""

    def __init__(self, page: PageLayout, event: EventLayout, byteorder: str = sys.byteorder) -> None:
        self.page = page
        self.event = event
        self._prefix = "<" if byteorder == "little" else ">"
        self._word = struct.Struct(self._prefix + "I")
        self._commit = struct.Struct(self._prefix + page.commit.format[-1:])
        self._fields = struct.Struct(self._prefix + event.fields.format[1:])
        self._little = byteorder == "little"
        # The few spellings of rwbs that a kernel uses, decided once each.
        self._kinds: dict[bytes, bool] = {}

    def decode(self, data: bytes) -> Page:
        """One page. Raises TraceFormatError when its bytes cannot be what the layout says."""
        layout = self.page
        if len(data) < layout.data_offset:
            raise TraceFormatError(f"a page of {len(data)} bytes is shorter than its header")
        (commit,) = self._commit.unpack_from(data, layout.commit_offset)
        commit &= 0xFFFFFFFF
        end = layout.data_offset + (commit & _COMMIT_MASK)
        if end > len(data):
            raise TraceFormatError(f"a page of {len(data)} bytes claims to hold {end}")
        page = Page()
        if commit & _MISSED_EVENTS:
            page.lost = self._missed(data, end, bool(commit & _MISSED_STORED))
        self._events(data, layout.data_offset, end, page)
        return page

    def _missed(self, data: bytes, end: int, stored: bool) -> int:
        if not stored or end + self._commit.size > len(data):
            return -1
        return int(self._commit.unpack_from(data, end)[0]) or -1

    def _events(self, data: bytes, position: int, end: int, page: Page) -> None:
        word, little = self._word.unpack_from, self._little
        fields, size, wanted = self._fields.unpack_from, self._fields.size, self.event.id
        kinds, changes, devices = self._kinds, page.changes, page.devices
        while position + 4 <= end:
            (header,) = word(data, position)
            kind = header & 31 if little else header >> 27
            if kind < _PADDING:
                if kind:
                    start, following = position + 4, position + 4 + kind * 4
                else:
                    if position + 8 > end:
                        raise TraceFormatError("an event is cut off at the end of its page")
                    start, following = position + 8, position + 4 + word(data, position + 4)[0]
                    following = (following + 3) & ~3
                if following > end or start + size > following:
                    raise TraceFormatError(f"an event of {following - start} bytes is not a block event")
                identity, device, sector, sectors, rwbs = fields(data, start)
                if identity != wanted:
                    raise TraceFormatError(f"an event has the type {identity}, not {wanted}")
                page.events += 1
                devices.add(device)
                counts = kinds.get(rwbs)
                if counts is None:
                    counts = kinds[rwbs] = changes_disk(rwbs)
                if counts:
                    if rwbs[:1] == b"Z" and rwbs[1:2] != b"A":
                        # Zone management: what it resets is not in the event.
                        page.unbounded.add(device)
                    changes.append((device, sector, sectors))
                position = following
            elif kind == _PADDING:
                delta = header >> 5 if little else header & ((1 << 27) - 1)
                if not delta:
                    # Nothing but padding up to the end of the page.
                    return
                position += 4 + word(data, position + 4)[0] if position + 8 <= end else 8
            else:
                position += 8
