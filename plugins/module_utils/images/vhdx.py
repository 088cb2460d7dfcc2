# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header and metadata of VHDX images: [MS-VHDX] 8.0, chapters 2.2 and 2.6."""

from __future__ import annotations

import uuid

from .header import Bytes, Header, Malformed, unpacked

MAGIC = b"vhdxfile"
_REGIONS = (192 << 10, 256 << 10)
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_MOST_ENTRIES = 2047


def parse(data: Bytes) -> Header:
    """The header. Raises Malformed."""
    place = next(filter(None, (_entry(data, at, b"regi", 16, 8, 32, _METADATA) for at in _REGIONS)), None)
    if place is None:
        raise Malformed("it has no region with metadata")
    metadata = unpacked(data, place + 16, "<Q")[0]
    size_at = _entry(data, metadata, b"metadata", 32, 10, 32, _SIZE)
    parameters_at = _entry(data, metadata, b"metadata", 32, 10, 32, _PARAMETERS)
    if size_at is None or parameters_at is None:
        raise Malformed("its metadata does not say how large the disk is")
    (size,) = unpacked(data, metadata + unpacked(data, size_at + 16, "<I")[0], "<Q")
    _block, flags = unpacked(data, metadata + unpacked(data, parameters_at + 16, "<I")[0], "<II")
    variant = "fixed" if flags & 1 else "dynamic"
    return Header("vhdx", variant, size, metadata + (1 << 16), "its parent" if flags & 2 else "")


def _entry(
    data: Bytes, table: int, signature: bytes, entries: int, count_at: int, width: int, wanted: uuid.UUID
) -> int | None:
    """Where the entry of *wanted* lies in the table of that signature; None without it or without the table."""
    if data.read(table, len(signature)) != signature:
        return None
    (count,) = unpacked(data, table + count_at, "<H" if signature == b"metadata" else "<I")
    for number in range(min(count, _MOST_ENTRIES)):
        at = table + entries + number * width
        if data.read(at, 16) == wanted.bytes_le:
            return at
    return None
