# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The format of an image file, by its bytes and never by its name."""

from __future__ import annotations

from collections.abc import Callable

from . import qcow2, vdi, vhd, vhdx, vmdk
from .foreign import foreign_kind
from .header import Bytes, Header, Malformed

# What QEMU calls the drivers of the formats.
QEMU_DRIVERS = {"qcow2": "qcow2", "vhd": "vpc", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx", "raw": "raw"}
EXTENSIONS = {
    "qcow2": ("qcow2", "qcow", "img"),
    "vhd": ("vhd", "vpc"),
    "vmdk": ("vmdk",),
    "vdi": ("vdi",),
    "vhdx": ("vhdx",),
    "raw": ("raw", "img", "bin", "dd"),
    "iso": ("iso",),
    "ova": ("ova",),
}


def recognise(data: Bytes) -> Header:
    """What the file is. A damaged header is told in ``problem``; a file without any signature is a raw disk."""
    for name, parse in _candidates(data):
        try:
            return parse(data)
        except Malformed as error:
            return Header(name, problem=str(error))
    kind = foreign_kind(data)
    if kind:
        return Header(kind)
    # A disk has whole sectors.
    return Header("raw", "", data.size, -(-data.size // 512) * 512)


def _candidates(data: Bytes) -> list[tuple[str, Callable[[Bytes], Header]]]:
    """The parser for the signature that the file has, if it has one."""
    start = data.read(0, 1024)
    if start[:4] == qcow2.MAGIC and start[4:8] != b"\0\0\0\x01":
        return [("qcow2", qcow2.parse)]
    if start[:4] in (vmdk.SPARSE, vmdk.ESX_SPARSE):
        return [("vmdk", vmdk.parse)]
    if vmdk.DESCRIPTOR.match(start):
        return [("vmdk", vmdk.parse_descriptor)]
    if start[vdi.MAGIC_AT : vdi.MAGIC_AT + 4] == vdi.MAGIC:
        return [("vdi", vdi.parse)]
    if start[:8] == vhdx.MAGIC:
        return [("vhdx", vhdx.parse)]
    if start[:8] == vhd.COOKIE or data.read(max(data.size - 512, 0), 8) == vhd.COOKIE:
        return [("vhd", vhd.parse)]
    return []


def name_fits(name: str, header: Header) -> bool:
    """Whether the end of the file's name is one that files of its format have, or none at all."""
    _base, dot, extension = name.rpartition(".")
    known = {each for group in EXTENSIONS.values() for each in group}
    extension = extension.lower()
    return not dot or extension not in known or extension in EXTENSIONS.get(header.format, (extension,))
