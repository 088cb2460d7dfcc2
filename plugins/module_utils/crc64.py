# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CRC64 as COS keeps it for every object: ECMA-182, reflected and inverted (catalogued as CRC-64/XZ).

The vendor's SDK has the same parameters in ``mkCrcFun(0x142F0E1EBA9EA3693, 0, 0xffffffffffffffff, rev=True)``; the
library used here computes it two orders of magnitude faster, and joins the checksums of parts.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator

try:
    import anycrc
except ImportError:
    CRC_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    CRC_IMPORT_ERROR = None
    _MODEL = anycrc.Model("CRC64-XZ")

CRC_PACKAGE = "anycrc"
CHUNK = 1024 * 1024


def crc64(data: bytes, before: int = 0) -> int:
    """The checksum of *data*, or of what came *before* and *data*."""
    return int(_MODEL.calc(data, before))


def joined(first: int, second: int, second_size: int) -> int:
    """The checksum of two runs of bytes from those of each; *second_size* is in bytes."""
    return int(_MODEL.combine(first, second, second_size))


def crc64_of_zeros(size: int) -> int:
    """The checksum of *size* zero bytes, without looking at them: by doubling."""
    result, power, length = 0, crc64(b"\0"), 1
    while size:
        if size & 1:
            result = joined(result, power, length)
        power = joined(power, power, length)
        length *= 2
        size >>= 1
    return result


def crc64_of_file(fd: int, size: int, advance: Callable[[int], None] = lambda count: None) -> int:
    """The checksum of the first *size* bytes of an open file; its holes are not read.

    *advance* is called with the bytes that were dealt with since the last call. Raises ``EOFError`` when the file is
    shorter, ``OSError`` when it cannot be read.
    """
    crc = 0
    for offset, length, is_data in extents(fd, size):
        if not is_data:
            crc = joined(crc, crc64_of_zeros(length), length)
            advance(length)
            continue
        end = offset + length
        while offset < end:
            piece = os.pread(fd, min(CHUNK, end - offset), offset)
            if not piece:
                raise EOFError(f"the file ends at {offset}, {size} bytes were expected")
            crc = crc64(piece, crc)
            offset += len(piece)
            advance(len(piece))
    return crc


def extents(fd: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Offset, length and whether it holds data, of the runs that make up the first *size* bytes of an open file."""
    offset = 0
    while offset < size:
        try:
            data = min(size, os.lseek(fd, offset, os.SEEK_DATA))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size  # Nothing but a hole follows, or the file ends before.
            if os.fstat(fd).st_size < size:
                raise EOFError(f"the file ends before {size}") from error
        if data > offset:
            yield offset, data - offset, False
        if data == size:
            return
        hole = min(size, os.lseek(fd, data, os.SEEK_HOLE))
        yield data, hole - data, True
        offset = hole
