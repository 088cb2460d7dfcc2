# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long an image takes to the cloud, what it costs there, and what compressing it first would save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..progress import duration, size

# The vendor's guide on migration times, page 213/38783: what writing a custom image takes, in bytes per second. Whether
# it counts the file or the disk in it is not said; the file is assumed.
IMPORT_RATE = 160_000_000
# Of a line's nominal bandwidth this much was seen as payload by the vendor's own FAQ (9 of 12 MB/s).
EFFICIENCY = 0.75
_MONTH = 30 * 86400


@dataclass(frozen=True)
class Sample:
    """What looking at some clusters of the disk gave: ``data`` bytes that hold something, and what they become.

    ``ratio`` is compressed by plain size of the looked-at clusters (1.0 where compression gains nothing), ``rate`` the
    bytes per second at which one processor compressed them, ``looked_at`` their bytes.
    """

    data: int
    ratio: float
    rate: float
    looked_at: int

    @property
    def compressed(self) -> int:
        """The bytes of the compressed image."""
        return round(self.data * self.ratio)


@dataclass(frozen=True)
class Assumptions:
    """``bandwidth`` and ``import_rate`` in bytes per second; ``price`` of one GB (10^9 bytes) in COS for a month."""

    bandwidth: float
    import_rate: float = IMPORT_RATE
    efficiency: float = EFFICIENCY
    price: float | None = None
    days_kept: float = 1.0
    processors: int = 1


def way(size: int, assumptions: Assumptions, convert_seconds: float = 0.0) -> dict[str, Any]:
    """The time of one way to go: *size* bytes are uploaded and imported, after so many seconds of conversion."""
    upload = size / (assumptions.bandwidth * assumptions.efficiency)
    imported = size / assumptions.import_rate
    cost = None
    if assumptions.price is not None:
        cost = round(size / 1e9 * assumptions.price * assumptions.days_kept * 86400 / _MONTH, 4)
    return {
        "bytes": size,
        "convert_seconds": round(convert_seconds, 1),
        "upload_seconds": round(upload, 1),
        "import_seconds": round(imported, 1),
        "total_seconds": round(convert_seconds + upload + imported, 1),
        "storage_cost": cost,
    }


def estimate(file_size: int, sample: Sample | None, assumptions: Assumptions) -> dict[str, Any]:
    """Both ways and which is shorter. Without a sample, or with one of an empty disk, only the file as it is."""
    as_it_is = way(file_size, assumptions)
    result: dict[str, Any] = {
        "assumed": {
            "bandwidth": assumptions.bandwidth,
            "efficiency": assumptions.efficiency,
            "import_rate": assumptions.import_rate,
        },
        "as_it_is": as_it_is,
        "compressed": None,
        "compression_pays": False,
        "saved_seconds": 0.0,
    }
    if sample is None:
        return result
    # QEMU compresses with at most four threads: MAX_COMPRESS_THREADS in block/qcow2.h.
    rate = sample.rate * max(1, min(4, assumptions.processors))
    compressed = way(sample.compressed, assumptions, sample.data / rate if rate else 0.0)
    saved = as_it_is["total_seconds"] - compressed["total_seconds"]
    result["compressed"] = {**compressed, "ratio": round(sample.ratio, 3), "looked_at": sample.looked_at}
    result["saved_seconds"] = round(saved, 1)
    result["compression_pays"] = saved > 0
    return result


def in_words(answer: Mapping[str, Any]) -> str:
    """The estimate as one line for people."""
    text = f"as it is {_way_in_words(answer['as_it_is'])}"
    if answer["compressed"] is not None:
        text += f"; compressed first {_way_in_words(answer['compressed'])}"
        text += f" (saves {duration(answer['saved_seconds'])})" if answer["compression_pays"] else " (does not pay)"
    return text


def _way_in_words(one: Mapping[str, Any]) -> str:
    steps = [("convert", "conversion"), ("upload", "upload"), ("import", "import")]
    times = [f"{duration(one[f'{key}_seconds'])} {name}" for key, name in steps if one[f"{key}_seconds"]]
    cost = "" if one["storage_cost"] is None else f", {one['storage_cost']:.2f} for storage"
    return f"{size(one['bytes'])}: {', '.join(times) or 'no time'}{cost}"
