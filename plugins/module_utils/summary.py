# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From journals to the table at the end of a play. Pure: journals in, rows and lines out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .progress import duration, size
from .table import lines

COLUMNS = ("source", "target", "reached", "read", "sent", "on wire", "passes", "downtime", "verified")


@dataclass(frozen=True)
class Row:
    """One source's migration. Sizes in bytes, downtime in seconds; None where it did not get so far."""

    source: str
    target: str
    phase: str
    status: str
    bytes_read: int | None
    bytes_sent: int | None
    bytes_wire: int | None
    passes: int
    downtime: float | None
    verified: bool | None
    message: str

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of COLUMNS."""
        reached = self.phase if self.status == "ok" else f"{self.phase} ({self.status})"
        return (
            self.source,
            self.target,
            reached,
            *(
                "-" if number is None else size(number)
                for number in (self.bytes_read, self.bytes_sent, self.bytes_wire)
            ),
            str(self.passes or "-"),
            "-"
            if self.downtime is None
            else f"{self.downtime:.1f} s"
            if self.downtime < 60
            else duration(self.downtime),
            "-" if self.verified is None else "yes" if self.verified else "NO",
        )


AFTER_HANDOVER = {"handover", "adapt", "cutover"}


def row(source: str, journal: dict[str, Any] | None) -> Row:
    """Summarise the journal of ``source``; None is a source that was never begun."""
    phases = (journal or {}).get("phases") or []
    data = {each["phase"]: each.get("data") or {} for each in phases if each.get("status") == "ok"}
    last: dict[str, Any] = phases[-1] if phases else {"phase": "not begun", "status": "ok"}
    order = [each["phase"] for each in phases if each.get("status") == "ok"]
    if "rollback" in order and order.index("rollback") > max(map(order.index, AFTER_HANDOVER & set(order)), default=-1):
        # The source is the server again: what the handover brought counts no more.
        data = {phase: said for phase, said in data.items() if phase not in AFTER_HANDOVER}
    handover = data.get("handover") or {}
    transfer = (data.get("transfer") or {}).get("transfer") or {}
    totals = handover.get("totals") or transfer.get("totals") or {}
    downtime = (data.get("cutover") or {}).get("downtime_seconds")
    return Row(
        source=source,
        target=str((journal or {}).get("target") or "-"),
        phase=str(last["phase"]),
        status=str(last.get("status", "ok")),
        bytes_read=totals.get("bytes_read"),
        bytes_sent=totals.get("bytes_sent"),
        bytes_wire=totals.get("bytes_wire"),
        passes=len(handover.get("passes") or transfer.get("passes") or []),
        downtime=None if downtime is None else float(downtime),
        verified=(handover.get("cutover") or {}).get("verified"),
        message=str((last.get("data") or {}).get("message") or "") if last.get("status") in ("failed", "held") else "",
    )


def table(rows: list[Row]) -> list[str]:
    """The lines of the table, with the causes of failures below it."""
    return lines(COLUMNS, [each.cells() for each in rows]) + [
        f"{each.source}: {each.message}" for each in rows if each.message
    ]
