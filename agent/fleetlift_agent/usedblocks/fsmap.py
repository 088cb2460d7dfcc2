# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free blocks as the running kernel knows them: FS_IOC_GETFSMAP (ioctl_getfsmap(2); XFS and ext4 since Linux 4.12)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from .runs import FreeRuns
from .volume import ReadInFull

# include/uapi/linux/fsmap.h: struct fsmap_head is 192 bytes, of which two keys; struct fsmap is 64 bytes.
_HEAD = struct.Struct("=IIII48x")
_ENTRY = struct.Struct("=IIQQQQ24x")
_KEYS = _HEAD.size
_RECORDS = _KEYS + 2 * _ENTRY.size
FS_IOC_GETFSMAP = (3 << 30) | (_RECORDS << 16) | (ord("X") << 8) | 59
_COUNT = 4096
_SPECIAL_OWNER = 0x10
_LAST = 0x20
_OWNER_FREE = 1
_ONES = (1 << 64) - 1


def free_runs(descriptor: int, device: int, size: int) -> FreeRuns | None:
    """The byte ranges that the filesystem open at *descriptor* calls free on the *device* of *size* bytes.

    None where this kernel or filesystem does not offer the call. Raises :class:`ReadInFull` for an answer that makes
    no sense, OSError when the kernel fails.
    """
    runs = FreeRuns()
    wanted = _encoded(device)
    try:
        for number, flags, start, owner, length in _records(descriptor):
            if number == wanted and flags & _SPECIAL_OWNER and owner == _OWNER_FREE:
                if start + length > size:
                    raise ReadInFull(f"the kernel calls bytes up to {start + length} free, the volume has {size}")
                runs.add(start, start + length)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return None
        raise
    except ValueError as error:
        # The filesystem changes between two calls; what is free may then seem to overlap.
        raise ReadInFull("its free space changed while the kernel listed it") from error
    return runs


def _records(descriptor: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(device, flags, start, owner, length) of each record, in order; positions in bytes."""
    buffer = bytearray(_RECORDS + _COUNT * _ENTRY.size)
    low = bytes(_ENTRY.size)
    while True:
        _HEAD.pack_into(buffer, 0, 0, 0, _COUNT, 0)
        buffer[_KEYS : _KEYS + _ENTRY.size] = low
        _ENTRY.pack_into(buffer, _KEYS + _ENTRY.size, 0xFFFFFFFF, 0xFFFFFFFF, _ONES, _ONES, _ONES, 0)
        fcntl.ioctl(descriptor, FS_IOC_GETFSMAP, buffer)
        entries = _HEAD.unpack_from(buffer)[3]
        for index in range(entries):
            device, flags, start, owner, _offset, length = _ENTRY.unpack_from(buffer, _RECORDS + index * _ENTRY.size)
            yield device, flags, start, owner, length
            if flags & _LAST:
                return
        if not entries:
            return
        last = _RECORDS + (entries - 1) * _ENTRY.size
        low = bytes(buffer[last : last + _ENTRY.size])


def _encoded(device: int) -> int:
    """new_encode_dev() of include/linux/kdev_t.h."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
