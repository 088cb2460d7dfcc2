# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of VirtualBox's images: VDICore.h of VirtualBox, block/vdi.c of QEMU."""

from __future__ import annotations

from .header import Bytes, Header, Malformed, unpacked

MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_AT = 64
_KINDS = {1: "dynamic", 2: "fixed", 3: "undo", 4: "differencing"}


def parse(data: Bytes) -> Header:
    """The header. Raises Malformed."""
    version, _length, kind = unpacked(data, 68, "<III")
    if version >> 16 != 1:
        raise Malformed(f"it says that it is version {version >> 16} of VDI, and there is 1")
    if kind not in _KINDS:
        raise Malformed(f"there is no type {kind} of a VDI")
    table, content = unpacked(data, 340, "<II")
    size, block, _extra, blocks, allocated = unpacked(data, 368, "<QIIII")
    if not block or blocks * block < size:
        raise Malformed("its table of blocks is too small for the disk")
    parent = "its parent" if kind in (3, 4) else ""
    return Header("vdi", _KINDS[kind], size, max(table + blocks * 4, content + allocated * block), parent)
