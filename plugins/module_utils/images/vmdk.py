# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header and the descriptor of VMDK images: VMware's Virtual Disk Format 5.0."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from .header import Bytes, Header, Malformed, text_of, unpacked

SPARSE, ESX_SPARSE = b"KDMV", b"COWD"
DESCRIPTOR = re.compile(rb"\A\s*(?:#[^\n]*\n\s*)*# Disk DescriptorFile", re.IGNORECASE)
# A delta of a chain of snapshots, as VMware names it.
CHAIN_NAME = re.compile(r"-\d{6}(?:-delta|-sesparse)?\.vmdk\Z", re.IGNORECASE)
_SECTOR = 512
_HEADER = "<4sIIQQQQIQQQ"
_GRAINS_AT_END = 0xFFFFFFFFFFFFFFFF
_COMPRESSED, _MARKERS = 1 << 16, 1 << 17
_NO_PARENT = "ffffffff"
_MOST_DESCRIPTOR = 1 << 20
_MOST_TABLES = 32 << 20
_EXTENT = re.compile(r'^(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)(?:\s+"([^"]*)")?', re.MULTILINE)


@dataclass(frozen=True)
class Description:
    """What a descriptor says; ``sectors`` of 512 bytes, ``files`` are the extents' names."""

    kind: str
    parent: str
    sectors: int
    files: tuple[str, ...]
    extent_kinds: tuple[str, ...]


def describe(text: str) -> Description:
    """Read a descriptor. Raises Malformed."""
    values = dict(re.findall(r'^\s*(\w+)\s*=\s*"?([^"\r\n]*)"?\s*$', text, re.MULTILINE))
    extents = _EXTENT.findall(text)
    if not extents:
        raise Malformed("its descriptor names no extent")
    parent = ""
    if values.get("parentCID", _NO_PARENT).lower() != _NO_PARENT:
        parent = values.get("parentFileNameHint") or "its parent"
    return Description(
        values.get("createType", ""),
        parent,
        sum(int(sectors) for _access, sectors, _kind, _name in extents),
        tuple(name for _access, _sectors, _kind, name in extents if name),
        tuple(kind.upper() for _access, _sectors, kind, _name in extents),
    )


def parse(data: Bytes) -> Header:
    """A file with a sparse header. Raises Malformed."""
    if data.read(0, 4) == ESX_SPARSE:
        return _esx(data)
    fields = unpacked(data, 0, _HEADER)
    _magic, version, flags, capacity, grain, descriptor_at, descriptor_size, entries, _backup, directory, overhead = (
        fields
    )
    if version not in (1, 2, 3):
        raise Malformed(f"it says that it is version {version} of a sparse VMDK, and there are 1 to 3")
    if not capacity:
        # QEMU would take whatever file the embedded descriptor names.
        raise Malformed("it has no capacity")
    if not grain or grain & (grain - 1) or not 1 <= entries <= 512 * 1024:
        raise Malformed("its grains have an impossible size")
    described = None
    if descriptor_at and 0 < descriptor_size * _SECTOR <= _MOST_DESCRIPTOR:
        # Parts of a split disk have the room for a descriptor and none in it.
        text = text_of(data.read(descriptor_at * _SECTOR, descriptor_size * _SECTOR))
        described = describe(text) if text else None
    streamed = bool(flags & _COMPRESSED and flags & _MARKERS)
    variant = described.kind if described else "extent"
    problem, least = "", overhead * _SECTOR
    if directory == _GRAINS_AT_END:
        problem, least = _footer_problem(data), 3 * _SECTOR
    else:
        least = max(least, _end_of_grains(data, directory, capacity, grain, entries, compressed=bool(flags & _MARKERS)))
    return Header(
        "vmdk",
        variant or ("streamOptimized" if streamed else "monolithicSparse"),
        capacity * _SECTOR,
        least,
        described.parent if described else "",
        compression="zlib" if flags & _COMPRESSED else "",
        problem=problem,
    )


def _footer_problem(data: Bytes) -> str:
    """A stream has its real header before its end; what is wrong when it has none."""
    raw = data.read(data.size - 2 * _SECTOR, 2 * _SECTOR)
    whole = len(raw) == 2 * _SECTOR and raw[:4] == SPARSE and not any(raw[_SECTOR:])
    return "" if whole else "its footer, which is the last thing in the file, is not there"


def _end_of_grains(data: Bytes, directory: int, capacity: int, grain: int, entries: int, *, compressed: bool) -> int:
    """Where the last grain table and the last grain that they know end, in bytes. Raises Malformed."""
    tables = -(-capacity // (grain * entries))
    if tables > _MOST_TABLES:
        raise Malformed("its grain directory is larger than any can be")
    raw = data.read(directory * _SECTOR, tables * 4)
    if len(raw) < tables * 4:
        raise Malformed(f"it ends at byte {directory * _SECTOR + len(raw)}, inside of its grain directory")
    end = last = 0
    for (table,) in struct.iter_unpack("<I", raw):
        if table:
            grains = data.read(table * _SECTOR, entries * 4)
            end = max(end, table * _SECTOR + entries * 4)
            last = max(last, max((at for (at,) in struct.iter_unpack("<I", grains[: len(grains) // 4 * 4])), default=0))
    # 1 stands for a grain of zeros. The last one need not be whole: it may lie beyond the disk's end.
    if last <= 1:
        return end
    # A compressed grain has its sector on the disk and its length before it.
    marker = data.read(last * _SECTOR, 12) if compressed else b""
    size = 12 + int.from_bytes(marker[8:], "little") if len(marker) == 12 else _SECTOR
    return max(end, last * _SECTOR + size)


def _esx(data: Bytes) -> Header:
    version, _flags, sectors, grain, directory, _entries, _free = unpacked(data, 4, "<IIIIIII")
    if version != 1 or not grain:
        raise Malformed("its header is not that of an ESX sparse extent")
    # It is what ESX makes of a snapshot, and of a thin extent that a descriptor beside it names.
    return Header("vmdk", "vmfsSparse", sectors * _SECTOR, directory * _SECTOR, "its parent")


def parse_descriptor(data: Bytes) -> Header:
    """A file that is a descriptor in text, whose data lies in others. Raises Malformed."""
    described = describe(data.read(0, _MOST_DESCRIPTOR).decode("utf-8", "replace"))
    return Header(
        "vmdk", described.kind or "descriptor", described.sectors * _SECTOR, 0, described.parent, described.files
    )
