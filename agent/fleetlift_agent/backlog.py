# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the target is behind, how fast that changes, and what it means for the final pass."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# The write rate is that of the last minute.
_WINDOW = 60.0
# Fewer bytes than these say nothing about a rate.
_TELLING = 1 << 20
# What a final pass costs however little there is to send: draining, a look at the free blocks, a round trip.
_LEAST_SECONDS = 0.3


@dataclass(frozen=True)
class Forecast:
    """Bytes, seconds and bytes/s; `lag` is None before the first pass is complete."""

    backlog: int
    lag: float | None
    write_rate: int
    send_rate: int
    final_pass: float | None

    def fits(self, max_downtime: float) -> bool:
        """Whether the final pass is expected to take no longer than this."""
        return self.final_pass is not None and self.final_pass <= max_downtime


class BacklogMeter:
    """Told what happens, with the time in seconds of one steady clock."""

    def __init__(self) -> None:
        self._written: deque[tuple[float, int]] = deque()
        self._in_sync_at: float | None = None
        self._backlog = 0
        self._send_rate = 0

    def look(self, now: float, *, backlog: int, written: int) -> None:
        """`backlog` bytes wait now, and `written` bytes were changed since tracking began."""
        self._backlog = backlog
        if backlog == 0 and self._in_sync_at is not None:
            self._in_sync_at = now
        if self._written and written < self._written[-1][1]:
            # Another tracker counts from the beginning.
            self._written.clear()
        self._written.append((now, written))
        while len(self._written) > 2 and now - self._written[0][0] > _WINDOW:
            self._written.popleft()

    def passed(self, began: float, *, seconds: float, looked_at: int) -> None:
        """A pass is complete that began then and looked at so many bytes."""
        self._in_sync_at = began
        if looked_at >= _TELLING and seconds > 0:
            self._send_rate = int(looked_at / seconds)

    def forecast(self, now: float) -> Forecast:
        then, before = self._written[0] if self._written else (now, 0)
        written = self._written[-1][1] if self._written else 0
        rate = int((written - before) / (now - then)) if now - then >= 1 else 0
        lag = None if self._in_sync_at is None else max(0.0, now - self._in_sync_at)
        return Forecast(self._backlog, lag, rate, self._send_rate, self._final_pass())

    def _final_pass(self) -> float | None:
        if self._backlog == 0:
            return _LEAST_SECONDS
        return _LEAST_SECONDS + self._backlog / self._send_rate if self._send_rate else None


def shrinks(backlogs: list[int]) -> bool:
    """Whether passes still gain on the writers, given what waited after each of them."""
    return len(backlogs) < 3 or backlogs[-1] < 0.8 * backlogs[-2]
