# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap space: only its first page tells anything that outlives a restart (struct swap_header, include/linux/swap.h)."""

from __future__ import annotations

import struct

from .runs import FreeRuns
from .volume import ReadInFull, Volume

MAGIC = b"SWAPSPACE2"
# The signature ends the first page; these are the page sizes of the architectures Linux runs on.
PAGES = (4096, 8192, 16384, 32768, 65536)
_MAX_BAD_PAGES_OFFSET = 1536


def page_size(volume: Volume) -> int | None:
    """The size in bytes of the pages of this swap space; None when it is none, or holds a hibernated system."""
    for page in PAGES:
        if page <= volume.size and volume.read(page - len(MAGIC), len(MAGIC)) == MAGIC:
            return page
    return None


def free_runs(volume: Volume) -> FreeRuns:
    """All pages behind the header, except those listed as bad; the volume's end behind the last page is not free."""
    page = page_size(volume)
    if page is None:
        raise ReadInFull("there is no swap header")
    header = volume.read(0, page)
    version, last, bad = struct.unpack_from("<III", header, 1024)
    if version != 1 or last < 1 or (last + 1) * page > volume.size:
        raise ReadInFull("its swap header does not fit the volume")
    if _MAX_BAD_PAGES_OFFSET + bad * 4 > page - len(MAGIC):
        raise ReadInFull("its swap header lists too many bad pages")
    runs = FreeRuns()
    position = 1
    for number in sorted(struct.unpack_from(f"<{bad}I", header, _MAX_BAD_PAGES_OFFSET)):
        if position <= number <= last:
            runs.add(position * page, number * page)
            position = number + 1
    runs.add(position * page, (last + 1) * page)
    return runs
