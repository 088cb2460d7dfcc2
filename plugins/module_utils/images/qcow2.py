# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of qcow2 images: docs/interop/qcow2.txt of QEMU."""

from __future__ import annotations

from .header import Bytes, Header, Malformed, text_of, unpacked

MAGIC = b"QFI\xfb"
_HEADER = ">4sIQIIQIIQQIIQ"
_EXTENSION_DATA_FILE = 0x44415441
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL | _COMPRESSION | _EXTENDED_L2
_COMPRESSIONS = {0: "zlib", 1: "zstd"}
# The specification's and QEMU's own limits.
_MOST_NAME = 1023
_MOST_SNAPSHOTS = 65536
_MOST_L1 = 32 << 20


def parse(data: Bytes) -> Header:
    """The header. Raises Malformed."""
    fields = unpacked(data, 0, _HEADER)
    _magic, version, backing_at, backing_size, cluster_bits, size, encryption, l1_entries, l1_at, refcounts_at = fields[
        :10
    ]
    clusters, snapshots, snapshots_at = fields[10:]
    if version not in (2, 3):
        raise Malformed(f"it says that it is version {version} of qcow2, and there are 2 and 3")
    if not 9 <= cluster_bits <= 21:
        raise Malformed(f"its clusters cannot have 2^{cluster_bits} bytes")
    if l1_entries * 8 > _MOST_L1 or snapshots > _MOST_SNAPSHOTS or backing_size > _MOST_NAME:
        raise Malformed("its tables are larger than any can be")
    cluster = 1 << cluster_bits
    features, length = (unpacked(data, 72, ">Q")[0], unpacked(data, 100, ">I")[0]) if version == 3 else (0, 72)
    if version == 3 and not 104 <= length <= cluster:
        raise Malformed(f"its header cannot have {length} bytes")
    if features & ~_KNOWN:
        raise Malformed(f"it uses features ({features & ~_KNOWN:#x}) that are not known here")
    if l1_entries < -(-size // (cluster * (cluster // (16 if features & _EXTENDED_L2 else 8)))):
        raise Malformed("its first table is too small for the disk")
    method = unpacked(data, 104, ">B")[0] if features & _COMPRESSION and length > 104 else 0
    backing = text_of(data.read(backing_at, backing_size)) if backing_at else ""
    external = features & _EXTERNAL
    return Header(
        "qcow2",
        f"version {version}",
        size,
        max(l1_at + l1_entries * 8, refcounts_at + clusters * cluster, snapshots_at if snapshots else 0),
        backing,
        (_data_file(data, length, cluster) or "an external data file",) if external else (),
        _snapshots(data, snapshots_at, snapshots),
        bool(encryption),
        bool(features & _DIRTY),
        _COMPRESSIONS.get(method, f"type {method}"),
        "QEMU marked it as corrupt" if features & _CORRUPT else "",
    )


def _data_file(data: Bytes, header: int, cluster: int) -> str:
    """The name in the header's extension for an external data file."""
    at = header
    while at + 8 <= cluster:
        kind, length = unpacked(data, at, ">II")
        if kind == 0 or length > cluster:
            break
        if kind == _EXTENSION_DATA_FILE:
            return text_of(data.read(at + 8, length))
        at += 8 + -(-length // 8) * 8
    return ""


def _snapshots(data: Bytes, at: int, count: int) -> tuple[str, ...]:
    """The names of the internal snapshots. Raises Malformed."""
    found = []
    for _number in range(count):
        id_size, name_size = unpacked(data, at + 12, ">HH")
        (extra,) = unpacked(data, at + 36, ">I")
        if extra > 1024:
            raise Malformed("its list of snapshots is damaged")
        raw = data.read(at + 40 + extra, id_size + name_size)
        found.append(raw[id_size:].decode("utf-8", "replace"))
        at += -(-(40 + extra + id_size + name_size) // 8) * 8
    return tuple(found)
