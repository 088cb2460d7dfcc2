# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables: MBR with logical partitions, and GPT (UEFI specification, chapter 5)."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass, field

from .volume import Device, ReadInFull

_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 256
_MAX_GPT_ENTRIES = 1024


class BeyondDisk(ReadInFull):
    """A partition ends ``missing`` bytes behind the end of the disk, which is perhaps not all there."""

    def __init__(self, missing: int) -> None:
        super().__init__("its partition table has a partition outside of the disk")
        self.missing = missing


@dataclass(frozen=True, order=True)
class Partition:
    """Bytes of the disk from *start*; a container (an extended partition) only holds others.

    ``number`` is the kernel's, ``kind`` the type as two hexadecimal digits (MBR) or a GUID, ``uuid`` the PARTUUID; both
    in lower case.
    """

    start: int
    size: int
    container: bool = False
    number: int = field(default=0, compare=False)
    kind: str = field(default="", compare=False)
    uuid: str = field(default="", compare=False)

    @property
    def end(self) -> int:
        return self.start + self.size


def read_table(device: Device, size: int, sector: int) -> list[Partition]:
    """The partitions of a disk of *size* bytes with sectors of *sector* bytes; none when it has no table.

    Raises :class:`ReadInFull` for a table that is damaged, or whose partitions overlap or leave the disk.
    """
    first = device.read(0, 512)
    if first[510:] != b"\x55\xaa":
        return []
    entries = _entries(first)
    # A boot loader's or a FAT filesystem's first sector ends the same, but has other bytes where a table has flags.
    if any(flag & 0x7F for flag, _kind, _start, _count in entries):
        return []
    if any(kind == _PROTECTIVE and count for _flag, kind, _start, count in entries):
        found = _gpt(device, size, sector)
    else:
        found = _mbr(device, entries, sector, struct.unpack_from("<I", first, 440)[0])
    _check(found, size)
    return sorted(found)


def _entries(raw: bytes) -> list[tuple[int, int, int, int]]:
    """(flag, type, first sector, sectors) of the four entries of a boot record."""
    return [struct.unpack_from("<B3xB3xII", raw, 446 + 16 * index) for index in range(4)]


def _mbr(device: Device, entries: list[tuple[int, int, int, int]], sector: int, signature: int) -> list[Partition]:
    found = []
    for number, (_flag, kind, start, count) in enumerate(entries, 1):
        if not kind or not count:
            continue
        container = kind in _EXTENDED
        found.append(_entry(start * sector, count * sector, container, number, kind, signature))
        if container:
            found += _logical(device, start, sector, signature)
    return found


def _entry(start: int, size: int, container: bool, number: int, kind: int, signature: int) -> Partition:
    return Partition(start, size, container, number, f"{kind:02x}", f"{signature:08x}-{number:02x}")


def _logical(device: Device, base: int, sector: int, signature: int) -> list[Partition]:
    """The chain of boot records in the extended partition at sector *base*."""
    found: list[Partition] = []
    record = base
    for _round in range(_MAX_LOGICAL):
        raw = device.read(record * sector, 512)
        if raw[510:] != b"\x55\xaa":
            raise ReadInFull("the chain of logical partitions is damaged")
        following = None
        for _flag, kind, start, count in _entries(raw)[:2]:
            if kind in _EXTENDED and count:
                following = base + start
            elif kind and count:
                number = 5 + len(found)
                found.append(_entry((record + start) * sector, count * sector, False, number, kind, signature))
        if following is None:
            return found
        if following <= record:
            raise ReadInFull("the chain of logical partitions runs in a circle")
        record = following
    raise ReadInFull("it has too many logical partitions")


def _gpt(device: Device, size: int, sector: int) -> list[Partition]:
    header = device.read(sector, 92)
    length, checksum = struct.unpack_from("<II", header, 12)
    if header[:8] != b"EFI PART" or not 92 <= length <= sector:
        raise ReadInFull("its GUID partition table has no valid header")
    header = device.read(sector, length)
    if zlib.crc32(header[:16] + bytes(4) + header[20:]) != checksum:
        raise ReadInFull("the checksum of the header of its GUID partition table is wrong")
    position, count, width, checksum = struct.unpack_from("<QIII", header, 72)
    if not 128 <= width <= 4096 or count > _MAX_GPT_ENTRIES or position * sector + count * width > size:
        raise ReadInFull("its GUID partition table has an impossible size")
    table = device.read(position * sector, count * width)
    if zlib.crc32(table) != checksum:
        raise ReadInFull("the checksum of the entries of its GUID partition table is wrong")
    found = []
    for index in range(count):
        kind, own, first, last = struct.unpack_from("<16s16sQQ", table, index * width)
        if kind != bytes(16):
            names = [str(uuid.UUID(bytes_le=raw)) for raw in (kind, own)]
            found.append(Partition(first * sector, (last - first + 1) * sector, False, index + 1, *names))
    return found


def _check(partitions: list[Partition], size: int) -> None:
    end = max((part.end for part in partitions), default=0)
    if end > size:
        raise BeyondDisk(end - size)
    if any(part.size <= 0 or part.start <= 0 for part in partitions):
        raise ReadInFull("its partition table has a partition outside of the disk")
    plain = sorted(part for part in partitions if not part.container)
    if any(first.end > second.start for first, second in zip(plain, plain[1:])):
        raise ReadInFull("its partition table has partitions that overlap")
