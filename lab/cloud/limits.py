# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Request-rate limits: so many calls of one action per second and account."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from lab.cloud.errors import ApiError

WINDOW = 1.0  # seconds


class RateLimiter:
    """Counts the calls of the last second; clock is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str, str], deque[float]] = {}

    def admit(self, uin: str, product: str, action: str, per_second: int) -> None:
        """Count a call, or refuse it with RequestLimitExceeded. A refused call is not counted."""
        now = self._clock()
        with self._lock:
            calls = self._calls.setdefault((uin, product, action), deque())
            while calls and calls[0] <= now - WINDOW:
                calls.popleft()
            if len(calls) >= per_second:
                raise ApiError(
                    "RequestLimitExceeded",
                    f"Your current request times equals to `{len(calls) + 1}` in a second, "
                    f"which exceeds the frequency limit `{per_second}` for a second. "
                    "Please reduce the frequency of calls.",
                )
            calls.append(now)
