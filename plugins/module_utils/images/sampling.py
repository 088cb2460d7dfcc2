# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What compressing a disk would come to, from some clusters of it, spread evenly over what it holds."""

from __future__ import annotations

import time
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from .disk import Disk
from .estimate import Sample

# QEMU's cluster, and its window for compressed ones: block/qcow2-threads.c.
CLUSTER = 64 << 10
WINDOW_BITS = -12
CLUSTERS = 128


def positions(extents: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The offsets of *count* whole clusters at even distances over the extents (offset and length, in bytes)."""
    whole = [(start, length // CLUSTER) for start, length in extents if length >= CLUSTER]
    ends = list(accumulate(clusters for _start, clusters in whole))
    total = ends[-1] if ends else 0
    found = []
    for number in range(min(count, total)):
        wanted = (2 * number + 1) * total // (2 * min(count, total))
        which = bisect_right(ends, wanted)
        before = ends[which - 1] if which else 0
        found.append(whole[which][0] + (wanted - before) * CLUSTER)
    return found


def take(disk: Disk, extents: Sequence[tuple[int, int]], count: int = CLUSTERS) -> Sample:
    """Compress some clusters as QEMU would. Raises OSError where the image cannot be read.

    Clusters of zeros are not stored at all, so they count as nothing.
    """
    plain = compressed = 0
    busy = 0.0
    for offset in positions(extents, count):
        data = disk.read(offset, CLUSTER)
        plain += len(data)
        if not any(data):
            continue
        began = time.process_time()
        machine = zlib.compressobj(wbits=WINDOW_BITS)
        size = len(machine.compress(data)) + len(machine.flush())
        busy += time.process_time() - began
        # A cluster that does not become smaller is stored as it is.
        compressed += min(size, CLUSTER)
    data_bytes = sum(length for _start, length in extents)
    return Sample(data_bytes, compressed / plain if plain else 1.0, plain / busy if busy else 0.0, plain)
