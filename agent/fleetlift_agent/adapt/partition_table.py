# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition table on a disk larger than its source: GPT's second header at the end, the last partition grown.

UEFI specification 2.10, chapter 5.3. Pure: what is read and what is to be written are bytes and offsets.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from fleetlift_agent.usedblocks.partitions import read_table
from fleetlift_agent.usedblocks.volume import Device, ReadInFull

CONCERN = "partition_table"
ALIGNMENT = 1 << 20
# Unused space below this is not worth a change.
_WORTH = 1 << 20
_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class TableChange:
    """What to write: bytes by their offset on the disk. ``what`` says it for people; ``grown`` is a partition's number.

    The parts that the table is found by come last.
    """

    what: str
    writes: tuple[tuple[int, bytes], ...]
    grown: int = 0


def adapt_table(device: Device, size: int, sector: int, *, grow: bool) -> TableChange | None:
    """The change that makes the table use the whole disk; None when there is nothing to do.

    *size* and *sector* are bytes. Raises :class:`ReadInFull` for a damaged table.
    """
    partitions = read_table(device, size, sector)
    if not partitions:
        return None
    last = max((part for part in partitions if not part.container), key=lambda part: part.start)
    if len(last.kind) > 2:
        return _adapt_gpt(device, size, sector, last.number if grow else 0)
    return _grow_mbr(device, size, sector) if grow else None


def _adapt_gpt(device: Device, size: int, sector: int, number: int) -> TableChange | None:
    header = device.read(sector, sector)
    length = struct.unpack_from("<I", header, 12)[0]
    entries_at, count, width = struct.unpack_from("<QII", header, 72)
    entries = bytearray(device.read(entries_at * sector, count * width))
    end = size // sector - 1
    table_sectors = -(-len(entries) // sector)
    last_usable = end - table_sectors - 1
    alternate, old_last_usable = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<Q", header, 48)[0]
    grown = 0
    if number:
        at = (number - 1) * width
        first, last = struct.unpack_from("<QQ", entries, at + 32)
        aligned = (last_usable + 1) // (ALIGNMENT // sector) * (ALIGNMENT // sector) - 1
        if aligned > last and (aligned - last) * sector >= _WORTH:
            struct.pack_into("<Q", entries, at + 40, aligned)
            grown = number
        del first
    if alternate == end and old_last_usable >= last_usable and not grown:
        return None
    new = bytearray(header[:length])
    primary = _gpt_header(new, 1, end, last_usable, entries_at, bytes(entries))
    backup = _gpt_header(new, end, 1, last_usable, end - table_sectors, bytes(entries))
    protective = bytearray(device.read(0, sector))
    for slot in range(4):
        at = 446 + 16 * slot
        if protective[at + 4] == 0xEE:
            start = _SIZE.unpack_from(protective, at + 8)[0]
            _SIZE.pack_into(protective, at + 12, min(end + 1 - start, 0xFFFFFFFF))
    what = f"the backup of the partition table is at the end of the disk (sector {end})"
    if grown:
        what += f", and partition {grown} reaches there"
    return TableChange(
        what,
        (
            ((end - table_sectors) * sector, bytes(entries)),
            (end * sector, backup),
            (entries_at * sector, bytes(entries)),
            (sector, primary),
            (0, bytes(protective)),
        ),
        grown,
    )


def _gpt_header(old: bytearray, own: int, other: int, last_usable: int, entries_at: int, entries: bytes) -> bytes:
    new = bytearray(old)
    struct.pack_into("<QQ", new, 24, own, other)
    struct.pack_into("<Q", new, 48, last_usable)
    struct.pack_into("<Q", new, 72, entries_at)
    _SIZE.pack_into(new, 88, zlib.crc32(entries))
    _SIZE.pack_into(new, 16, 0)
    _SIZE.pack_into(new, 16, zlib.crc32(new))
    return bytes(new)


def _grow_mbr(device: Device, size: int, sector: int) -> TableChange | None:
    """The last primary partition, or the last logical one with its container, up to the end of the disk."""
    first = bytearray(device.read(0, 512))
    slots = [slot for slot in range(4) if first[450 + 16 * slot] and _count(first, slot)]
    slot = max(slots, key=lambda each: _SIZE.unpack_from(first, 454 + 16 * each)[0])
    start = _SIZE.unpack_from(first, 454 + 16 * slot)[0]
    # Sector numbers have 32 bits.
    end = min(size // sector, 1 << 32) // (ALIGNMENT // sector) * (ALIGNMENT // sector)
    if (end - start - _count(first, slot)) * sector < _WORTH:
        return None
    writes = []
    number = slot + 1
    if first[450 + 16 * slot] in (0x05, 0x0F, 0x85):
        record, number = _last_record(device, start, sector)
        if record is None:
            return None
        table = bytearray(device.read(record * sector, 512))
        inner = _SIZE.unpack_from(table, 454)[0]
        _SIZE.pack_into(table, 458, end - record - inner)
        writes.append((record * sector, bytes(table)))
        # The record before it says how long the last one is, counted from the start of the container.
        previous = _record_before(device, start, record, sector)
        if previous is not None:
            chain = bytearray(device.read(previous * sector, 512))
            _SIZE.pack_into(chain, 474, end - record)
            writes.append((previous * sector, bytes(chain)))
    _SIZE.pack_into(first, 458 + 16 * slot, end - start)
    writes.append((0, bytes(first)))
    return TableChange(f"partition {number} reaches the end of the disk", tuple(writes), number)


def _count(record: bytes | bytearray, slot: int) -> int:
    return int(_SIZE.unpack_from(record, 458 + 16 * slot)[0])


def _chain(device: Device, base: int, sector: int) -> list[int]:
    """The sectors of the boot records of an extended partition; read_table has found them sound."""
    records = [base]
    while True:
        raw = device.read(records[-1] * sector, 512)
        following = _SIZE.unpack_from(raw, 470)[0]
        if raw[466] not in (0x05, 0x0F, 0x85) or not following:
            return records
        if base + following <= records[-1]:
            raise ReadInFull("the chain of logical partitions runs in a circle")
        records.append(base + following)


def _last_record(device: Device, base: int, sector: int) -> tuple[int | None, int]:
    """The record of the last logical partition and that partition's number; no record when that is not the last one."""
    records = _chain(device, base, sector)
    tables = [device.read(record * sector, 512) for record in records]
    used = [record for record, raw in zip(records, tables) if raw[450] and _count(raw, 0)]
    if not used or used[-1] != records[-1]:
        return None, 0
    return used[-1], 4 + len(used)


def _record_before(device: Device, base: int, record: int, sector: int) -> int | None:
    records = _chain(device, base, sector)
    at = records.index(record)
    return records[at - 1] if at else None
