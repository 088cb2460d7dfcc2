# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A limit of bytes per second over all threads that share it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What may pass at once after a pause, in seconds of the rate.
BURST = 0.25


class Pace:
    """Lets *rate* bytes per second pass; None is no limit.

    Callers take before they send. The debt of one piece is paid by whoever comes next, so the long-run rate is exact.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    @property
    def piece(self) -> int:
        """The most bytes to take at once, so that a slow rate still flows evenly."""
        return 1 << 20 if self._rate is None else max(4096, min(1 << 20, self._rate // 8))

    def take(self, count: int) -> None:
        """Wait until *count* bytes may pass."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            begins = max(self._free_at, now - BURST)
            self._free_at = begins + count / self._rate
        if begins > now:
            self._sleep(begins - now)
