# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device of the device mapper (an LVM volume) is made of: its table, asked from the kernel.

Format: include/uapi/linux/dm-ioctl.h, version 4 of the interface; Documentation/admin-guide/device-mapper/linear.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .volume import Device, ReadInFull

CONTROL = Path("/dev/mapper/control")
_SECTOR = 512
# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev; then the
# name of 128 and the UUID of 129 bytes, and 7 bytes that make it 312.
_HEADER = struct.Struct("<3IIIIiIIIQ")
_HEADER_SIZE = 312
# struct dm_target_spec: sector_start, length, status, next (from the first one), target_type; its text follows.
_TARGET = struct.Struct("<QQiI16s")
# _IOWR(0xfd, 12, struct dm_ioctl)
_TABLE_STATUS = 0xC138FD0C
_STATUS_TABLE = 1 << 4
_BUFFER_FULL = 1 << 8
_BUFFER = 64 << 10


@dataclass(frozen=True)
class Target:
    """One line of a table, in bytes of the device: its kind, and its parameters as the kernel writes them."""

    start: int
    length: int
    kind: str
    parameters: str


@dataclass(frozen=True)
class Segment:
    """`length` bytes from `start` of a volume lie at `position` of a disk."""

    start: int
    length: int
    position: int


def read_table(number: int) -> list[Target]:
    """The live table of the device with this number. Raises OSError where the kernel cannot be asked."""
    request = bytearray(_BUFFER)
    _HEADER.pack_into(request, 0, 4, 0, 0, _BUFFER, _HEADER_SIZE, 0, 0, _STATUS_TABLE, 0, 0, number)
    descriptor = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TABLE_STATUS, request)
    finally:
        os.close(descriptor)
    return parse_table(bytes(request))


def parse_table(answer: bytes) -> list[Target]:
    """The table in the kernel's answer. Raises :class:`ReadInFull` when the answer is not complete."""
    *_version, _size, data, count, _open, flags, _event, _padding, _number = _HEADER.unpack_from(answer)
    if flags & _BUFFER_FULL:
        raise ReadInFull("its table is larger than what is read of it")
    table = []
    at = data
    for _target in range(count):
        if not data <= at <= len(answer) - _TARGET.size:
            raise ReadInFull("the kernel's answer about its table is damaged")
        start, length, _status, following, kind = _TARGET.unpack_from(answer, at)
        text = answer[at + _TARGET.size :].split(b"\0", 1)[0]
        name = kind.split(b"\0", 1)[0].decode("ascii", "replace")
        table.append(Target(start * _SECTOR, length * _SECTOR, name, text.decode("ascii", "replace")))
        at = data + following
    return table


def segments(table: Sequence[Target], places: dict[int, tuple[int, int]]) -> tuple[Segment, ...]:
    """Where a volume lies on a disk, of whose devices `places` says by number where they begin and how long they are.

    Raises :class:`ReadInFull` for a volume that is not made of plain stretches of this disk.
    """
    found = []
    expected = 0
    for target in table:
        if target.kind != "linear":
            raise ReadInFull(f"it is part of a volume of the kind {target.kind}")
        device, offset = target.parameters.split()
        major, minor = device.split(":")
        place = places.get(os.makedev(int(major), int(minor)))
        if place is None:
            raise ReadInFull("it is part of a volume that reaches over several disks")
        position = int(offset) * _SECTOR
        if target.start != expected or target.length <= 0 or position + target.length > place[1]:
            raise ReadInFull("it is part of a volume whose table does not fit it")
        found.append(Segment(target.start, target.length, place[0] + position))
        expected += target.length
    if not found:
        raise ReadInFull("it is part of a volume without a table")
    return tuple(found)


class SegmentedDevice:
    """A volume as one device, read from the disk below it."""

    def __init__(self, disk: Device, parts: Sequence[Segment]) -> None:
        self._disk = disk
        self._parts = parts

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self._disk.read(start, end - start) for start, end in on_disk(self._parts, offset, length))


def on_disk(parts: Sequence[Segment], offset: int, length: int) -> list[tuple[int, int]]:
    """The (start, end) stretches of the disk that `length` bytes from `offset` of the volume lie in, in its order."""
    found = []
    for part in parts:
        start, end = max(offset, part.start), min(offset + length, part.start + part.length)
        if start < end:
            found.append((part.position + start - part.start, part.position + end - part.start))
    return found
