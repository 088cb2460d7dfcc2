# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From the journals of image files to the table at the end of a play. Pure: journals in, rows and lines out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .progress import duration, size
from .table import lines

COLUMNS = ("image", "format", "file", "disk", "reached", "uploaded", "kept", "import", "instance", "address")


@dataclass(frozen=True)
class Row:
    """One image's way to its instance. Sizes in bytes, times in seconds; None where it did not get so far."""

    source: str
    format: str
    file_size: int | None
    disk_size: int | None
    phase: str
    status: str
    bytes_sent: int | None
    bytes_kept: int | None
    import_seconds: float | None
    instance_id: str
    address: str
    message: str

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of COLUMNS."""
        sizes = (self.bytes_sent, self.bytes_kept)
        return (
            self.source,
            self.format,
            "-" if self.file_size is None else size(self.file_size),
            "-" if self.disk_size is None else size(self.disk_size),
            self.phase if self.status == "ok" else f"{self.phase} ({self.status})",
            *("-" if number is None else size(number) for number in sizes),
            "-" if self.import_seconds is None else duration(self.import_seconds),
            self.instance_id or "-",
            self.address or "-",
        )


def row(source: str, journal: dict[str, Any] | None) -> Row:
    """Summarise the journal of ``source``; None is an image that was never begun."""
    phases = (journal or {}).get("phases") or []
    data = {each["phase"]: each.get("data") or {} for each in phases if each.get("status") == "ok"}
    last: dict[str, Any] = phases[-1] if phases else {"phase": "not begun", "status": "ok"}
    image = (data.get("check") or {}).get("image") or {}
    upload, made = data.get("upload") or {}, data.get("health") or data.get("instance") or {}
    waited = (data.get("import") or {}).get("waited_seconds")
    return Row(
        source=source,
        format=str(image.get("format") or "-"),
        file_size=image.get("file_size"),
        disk_size=image.get("virtual_size"),
        phase=str(last["phase"]),
        status=str(last.get("status", "ok")),
        bytes_sent=upload.get("bytes_sent"),
        bytes_kept=upload.get("bytes_kept"),
        import_seconds=None if waited is None else float(waited),
        instance_id=str(made.get("instance_id") or ""),
        address=str(made.get("address") or ""),
        message=str((last.get("data") or {}).get("message") or "") if last.get("status") == "failed" else "",
    )


def table(rows: list[Row]) -> list[str]:
    """The lines of the table, with the causes of failures below it."""
    return lines(COLUMNS, [each.cells() for each in rows]) + [
        f"{each.source}: {each.message}" for each in rows if each.message
    ]
