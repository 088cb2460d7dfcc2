# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are no image of a disk, or not one that anything imports: named, so that the user knows what to do."""

from __future__ import annotations

from .header import Bytes

# Offset and bytes of the signatures: file(1), and the specifications that it quotes.
SIGNATURES = (
    ("gzip", 0, b"\x1f\x8b"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("bzip2", 0, b"BZh"),
    ("lz4", 0, b"\x04\x22\x4d\x18"),
    ("zip", 0, b"PK\x03\x04"),
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("rar", 0, b"Rar!\x1a\x07"),
    ("tar", 257, b"ustar"),
    ("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("wim", 0, b"MSWIM\0\0\0"),
    ("dmg", -512, b"koly"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("html", 0, b"<!DOCTYPE html"),
    ("html", 0, b"<html"),
    ("xml", 0, b"<?xml"),
)
ARCHIVES = ("gzip", "xz", "zstd", "bzip2", "lz4", "zip", "7z", "rar", "tar", "ova", "wim")
_ISO_AT, _ISO = 32769, b"CD001"


def foreign_kind(data: Bytes) -> str:
    """What the file is instead of an image; empty when nothing says so."""
    for kind, offset, signature in SIGNATURES:
        at = offset if offset >= 0 else data.size + offset
        if at >= 0 and data.read(at, len(signature)) == signature:
            return _of_tar(data) if kind == "tar" else kind
    # A hybrid ISO is a disk too, that firmware boots an installer from.
    return "iso" if data.read(_ISO_AT, len(_ISO)) == _ISO else ""


def _of_tar(data: Bytes) -> str:
    """An appliance (OVA) is a tar archive whose first member is an OVF descriptor: DSP0243, chapter 5.3."""
    name = data.read(0, 100).partition(b"\0")[0]
    return "ova" if name.lower().endswith(b".ovf") else "tar"
