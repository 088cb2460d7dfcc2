# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much is written to each disk, from two looks at /proc/diskstats. Pure: texts in, bytes per second out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Documentation/admin-guide/iostats.rst: major and minor number, name, and as the seventh figure after it the sectors
# written, in units of 512 bytes.
SECTOR = 512
MAJOR, MINOR, SECTORS_WRITTEN = 0, 1, 9


@dataclass(frozen=True)
class WriteRate:
    """Bytes per second: in the sample, and on average since the server booted. None where it is not known."""

    sampled: float | None
    since_boot: float | None


def parse_diskstats(text: str) -> dict[str, int]:
    """Bytes written since boot by the number of each device, such as ``8:0``, from the text of /proc/diskstats."""
    written = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > SECTORS_WRITTEN and fields[SECTORS_WRITTEN].isdecimal():
            written[f"{fields[MAJOR]}:{fields[MINOR]}"] = int(fields[SECTORS_WRITTEN]) * SECTOR
    return written


def parse_uptime(text: str) -> float | None:
    """Seconds since boot, from the text of /proc/uptime; None when it is not there."""
    first = text.split()[:1]
    try:
        return float(first[0]) if first else None
    except ValueError:
        return None


def write_rate(
    number: str, before: Mapping[str, int], after: Mapping[str, int], seconds: float, uptime: float | None
) -> WriteRate:
    """The rate of the device *number* between two samples that lie *seconds* apart.

    A counter of 32 bits may have started over in between; what it says is then no rate.
    """
    first, last = before.get(number), after.get(number)
    sampled = None
    if first is not None and last is not None and last >= first and seconds > 0:
        sampled = (last - first) / seconds
    return WriteRate(sampled, last / uptime if last is not None and uptime else None)
