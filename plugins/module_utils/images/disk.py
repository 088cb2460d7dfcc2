# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disk in an image: its partitions, what they hold, and how it can be started.

Uses the agent's parsers, which the caller has made importable (:func:`with_agent`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from . import nbd
from .header import Header, ImageFile

SECTOR = 512
_BOOT_CODE = 440


class Disk(Protocol):
    """The disk's bytes: ``read`` raises OSError beyond the end and for what cannot be read."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...


class RawDisk:
    """A raw image, or the one part of a fixed VHD that holds the disk."""

    def __init__(self, file: ImageFile, size: int) -> None:
        self._file = file
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk. Raises OSError beyond its end."""
        data = b""
        if offset >= 0 and offset + length <= self.size:
            data = self._file.read(offset, length)
        if len(data) < length:
            raise OSError(0, f"byte {offset} + {length} is beyond the end of the disk ({self.size} bytes)")
        return data


@contextmanager
def opened(file: ImageFile, header: Header) -> Iterator[Disk]:
    """The disk in the image. Raises Refusal (QEMU_IMG_MISSING and others), nbd.DiskUnreadable."""
    if header.format == "raw" or header.variant == "fixed" and header.format == "vhd":
        yield RawDisk(file, header.virtual_size or 0)
    else:
        with nbd.served(file.path, header) as disk:
            yield disk


@contextmanager
def with_agent(program: str) -> Iterator[None]:
    """Make the agent's parsers in the zipapp or directory *program* importable."""
    sys.path.insert(0, program)
    try:
        yield
    finally:
        sys.path.remove(program)


def contents(disk: Disk) -> Any:
    """The disk's table and volumes, as the agent's CopyDisk. Raises the agent's ReadInFull for a damaged table."""
    from fleetlift_agent.adapt.volumes import disk_behind

    return disk_behind(disk, "d0", Path("image"), disk.size, SECTOR)


def table_name(found: Any, disk: Disk) -> str:
    """gpt, mbr, or none; a GPT without partitions is one as well."""
    return str(found.table) or ("gpt" if disk.size >= 1024 and disk.read(SECTOR, 8) == b"EFI PART" else "none")


def missing_end(disk: Disk) -> int:
    """The bytes between the end of the disk and where its GPT says that the end is; 0 without a GPT.

    UEFI specification 2.10, table 5.5: the second header is in the last sector.
    """
    header = disk.read(SECTOR, 40) if disk.size >= 2 * SECTOR else b""
    if header[:8] != b"EFI PART":
        return 0
    return max(0, (int.from_bytes(header[32:40], "little") + 1) * SECTOR - disk.size)


def starts_with(found: Any, disk: Disk) -> list[str]:
    """The kinds of firmware that find something to start: bios by the code in the first sector, uefi by the ESP."""
    from fleetlift_agent.adapt.boot_loader import ESP_TYPES

    kinds = []
    first = disk.read(0, SECTOR) if disk.size >= SECTOR else b""
    if found.table and any(first[:_BOOT_CODE]):
        kinds.append("bios")
    if any(volume.partition_type in ESP_TYPES for volume in found.volumes):
        kinds.append("uefi")
    return kinds


def partitions(found: Any) -> list[dict[str, Any]]:
    """The partitions as modules return them; sizes and starts in bytes."""
    return [
        {
            "number": volume.number,
            "start": volume.start,
            "size": volume.size,
            "type": volume.partition_type,
            "partuuid": volume.partuuid,
            "holds": volume.content.kind,
            "uuid": volume.content.uuid,
            "label": volume.content.label,
        }
        for volume in found.volumes
        if volume.number
    ]
