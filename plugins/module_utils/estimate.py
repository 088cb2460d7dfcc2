# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a migration will take, from the facts of the preflight; and afterwards, what it took.

A figure that nothing is known for is None, and the assumptions say so. All sizes in bytes, times in seconds, rates in
bytes per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .progress import duration, size

# What is on the wire of what is read, where an earlier run has not measured it: between text and packed data.
COMPRESSION = 0.6
# A disk that was not sampled reads at this rate: a busy disk of spinning platters.
READ_RATE = 100e6
# What the end of a tracked transfer sends is what changed in so many seconds.
LAST_CHANGES = 10.0
# Stopping one service, and leaving the landing, booting and answering; the vendor documents no time for the latter.
SERVICE_STOP = 5.0
FREEZE = 5.0
BOOT = 90.0


@dataclass(frozen=True)
class Circumstances:
    """What the source's facts do not say. A limit, budget or share of 0 is none.

    ``share`` is the part of the budget that the source gets while all run at once; ``compression`` what an earlier run
    has measured on the wire of what it read, None without one.
    """

    bandwidth_limit: float = 0.0
    budget: float = 0.0
    share: float = 1.0
    tracked: bool = True
    services: int = 0
    compression: float | None = None


def estimate(disks: Sequence[Mapping[str, Any]], probed: float | None, around: Circumstances) -> dict[str, Any]:
    """The estimate for a source whose *disks* (as the preflight describes them) are migrated.

    *probed* is the measured rate of the path, None where it was not measured.
    """
    assumptions = []
    used = sum(disk.get("used_bytes") or disk["size"] for disk in disks)
    if unknown := [str(disk.get("path") or "?") for disk in disks if disk.get("used_bytes") is None]:
        assumptions.append(f"all of {', '.join(unknown)} is in use: how much is was not read")
    ratio = COMPRESSION if around.compression is None else around.compression
    kind = "assumed" if around.compression is None else "measured by an earlier run"
    assumptions.append(f"{ratio:.0%} of what is read goes over the wire ({kind})")
    reading = _reading(disks, assumptions)
    rate = _rate(probed, around, assumptions)
    written = sum(disk.get("write_bytes_per_second") or 0.0 for disk in disks)
    if any(disk.get("write_bytes_per_second") is None for disk in disks):
        assumptions.append("nothing is written meanwhile where the rate of writing was not measured")
    wire = used * ratio
    seconds, traffic = _transfer(wire, reading, written * ratio, rate)
    if rate is not None and seconds is None:
        assumptions.append("it does not end: more is written than the path carries")
    return {
        "bytes_to_send": round(used),
        "traffic_bytes": None if traffic is None else round(traffic),
        "seconds": None if seconds is None else round(seconds),
        "downtime_seconds": _downtime(reading, written * ratio, rate, around, assumptions),
        "rate_bytes_per_second": None if rate is None else round(rate),
        "assumptions": assumptions,
    }


def _reading(disks: Sequence[Mapping[str, Any]], assumptions: list[str]) -> float:
    """Seconds to read what is in use, the disks side by side."""
    rates = [disk.get("read_bytes_per_second") or 0.0 for disk in disks]
    if any(rate < 1 for rate in rates):
        assumptions.append(f"disks that were not sampled read {size(round(READ_RATE))}/s")
    times = [
        (disk.get("used_bytes") or disk["size"]) / (rate if rate >= 1 else READ_RATE)
        for disk, rate in zip(disks, rates)
    ]
    return max(times, default=0.0)


def _rate(probed: float | None, around: Circumstances, assumptions: list[str]) -> float | None:
    """What the source can send per second, None where nothing says it."""
    bounds = {
        "measured on the path": probed or 0.0,
        "the source's own limit": around.bandwidth_limit,
        "its share of the budget, with all sources at once": around.budget * around.share,
    }
    known = {why: bound for why, bound in bounds.items() if bound >= 1}
    if not known:
        assumptions.append("the path was not measured and no limit is set, so times are not known")
        return None
    why = min(known, key=lambda each: known[each])
    assumptions.append(f"{size(round(known[why]))}/s are sent ({why})")
    return known[why]


def _transfer(wire: float, reading: float, written: float, rate: float | None) -> tuple[float | None, float | None]:
    """Seconds until in sync, and bytes on the wire until then: each pass sends what was written during the last."""
    if rate is None:
        return None, wire
    if written >= rate:
        return None, None
    # The first pass, and the audit that reads all once more; then a geometric series.
    first = max(wire / rate, reading) + reading
    return first / (1 - written / rate), wire + written * first / (1 - written / rate)


def _downtime(
    reading: float, written: float, rate: float | None, around: Circumstances, assumptions: list[str]
) -> int | None:
    assumptions.append(
        f"stopping a service takes {SERVICE_STOP:g} s; leaving the landing, booting and answering takes {BOOT:g} s"
    )
    seconds = around.services * SERVICE_STOP + FREEZE + BOOT
    if not around.tracked:
        assumptions.append("changes cannot be tracked: all that is in use is read once more in the downtime")
        return round(seconds + reading)
    if written and rate is None:
        return None
    return round(seconds + (LAST_CHANGES * written / rate if rate else 0.0))


def fleet(estimates: Iterable[Mapping[str, Any]], budget: float = 0.0) -> dict[str, Any]:
    """The estimates of all sources together; the time is that of the slowest, or of the budget where there is one."""
    known = list(estimates)
    traffic = [each["traffic_bytes"] for each in known]
    seconds = [each["seconds"] for each in known]
    whole = sum(traffic) if traffic and None not in traffic else None
    longest = max(seconds) if seconds and None not in seconds else None
    if budget >= 1 and whole is not None and longest is not None:
        longest = max(longest, round(whole / budget))
    return {
        "bytes_to_send": sum(each["bytes_to_send"] for each in known),
        "traffic_bytes": whole,
        "seconds": longest,
        "downtime_seconds": max((each["downtime_seconds"] or 0 for each in known), default=None),
    }


def happened(journal: Mapping[str, Any]) -> dict[str, Any]:
    """What the migration in *journal* took, under the names of an estimate; None where it did not get so far."""
    phases = {each["phase"]: each for each in journal.get("phases") or () if each.get("status") == "ok"}

    def data(phase: str) -> Mapping[str, Any]:
        return (phases.get(phase) or {}).get("data") or {}

    totals = data("handover").get("totals") or (data("transfer").get("transfer") or {}).get("totals") or {}
    begun = (phases.get("landing") or {}).get("finished")
    ended = (phases.get("transfer") or {}).get("finished")
    downtime = data("cutover").get("downtime_seconds")
    return {
        "bytes_to_send": totals.get("bytes_sent"),
        "traffic_bytes": totals.get("bytes_wire"),
        "seconds": None if begun is None or ended is None or ended < begun else round(ended - begun),
        "downtime_seconds": None if downtime is None else float(downtime),
    }


def measured_compression(journal: Mapping[str, Any] | None) -> float | None:
    """What an earlier run of the source had on the wire of what it sent, None where none has sent enough to tell."""
    took = happened(journal or {})
    sent, wire = took["bytes_to_send"], took["traffic_bytes"]
    return None if not sent or wire is None or sent < 64 << 20 else min(1.0, wire / sent)


def comparison(source: str, expected: Mapping[str, Any], took: Mapping[str, Any]) -> str | None:
    """One line about what was expected of *source* and what it took; None where there is nothing to compare."""
    parts = []
    for name, label, show in (
        ("traffic_bytes", "on the wire", size),
        ("seconds", "until in sync", duration),
        ("downtime_seconds", "of downtime", duration),
    ):
        if expected.get(name) is not None and took.get(name) is not None:
            parts.append(f"{show(took[name])} {label}, {show(expected[name])} expected")
    return f"{source}: {'; '.join(parts)}" if parts else None
