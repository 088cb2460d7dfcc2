# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The footer and the header of VHD images: Microsoft's Virtual Hard Disk Image Format Specification 1.0."""

from __future__ import annotations

import struct

from .header import Bytes, Header, Malformed, unpacked

COOKIE = b"conectix"
_FOOTER = 512
_KINDS = {2: "fixed", 3: "dynamic", 4: "differencing"}
_DYNAMIC_COOKIE = b"cxsparse"
_UNUSED = 0xFFFFFFFF
_MOST_BLOCKS = 1 << 24


def parse(data: Bytes) -> Header:
    """The image by its footer, or by the copy of it at its start. Raises Malformed."""
    end = data.size - _FOOTER
    last, first = data.read(max(end, 0), _FOOTER), data.read(0, _FOOTER)
    whole = last[:8] == COOKIE
    footer = last if whole else first
    if len(footer) < _FOOTER:
        raise Malformed(f"it ends at byte {data.size}, inside of its own header")
    offset, size, kind, checksum = struct.unpack_from(">16xQ24xQ4xII", footer)
    if sum(footer[:64] + footer[68:]) ^ 0xFFFFFFFF != checksum:
        raise Malformed("the checksum of its footer is wrong")
    if kind not in _KINDS:
        raise Malformed(f"there is no type {kind} of a VHD")
    if kind == 2:
        return Header("vhd", "fixed", size, size + _FOOTER)
    cookie, table, blocks, block_size = unpacked(data, offset, ">8s8xQ4xII")
    if cookie != _DYNAMIC_COOKIE:
        raise Malformed("it has no header for a dynamic disk")
    if not 512 <= block_size <= 1 << 30 or block_size & (block_size - 1) or blocks > _MOST_BLOCKS:
        raise Malformed("its blocks have an impossible size")
    if blocks * block_size < size:
        raise Malformed("its table of blocks is too small for the disk")
    parent = data.read(offset + 64, 512).decode("utf-16-be", "replace").partition("\0")[0] if kind == 4 else ""
    least = _end_of_blocks(data, table, blocks, block_size)
    problem = "" if whole else "its footer, which is the last thing in the file, is not there"
    return Header(
        "vhd",
        _KINDS[kind],
        size,
        max(least, table + blocks * 4),
        parent or ("its parent" if kind == 4 else ""),
        problem=problem,
    )


def _end_of_blocks(data: Bytes, table: int, blocks: int, block_size: int) -> int:
    """Where the last block in the table ends. Raises Malformed."""
    raw = data.read(table, blocks * 4)
    if len(raw) < blocks * 4:
        raise Malformed(f"it ends at byte {table + len(raw)}, inside of its table of blocks")
    used = [sector for (sector,) in struct.iter_unpack(">I", raw) if sector != _UNUSED]
    # Before each block lies a map of its sectors, padded to whole sectors.
    bitmap = -(-block_size // 512 // 8 // 512) * 512
    return max(used) * 512 + max(bitmap, 512) + block_size if used else 0
