# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A token bucket that all connections share and that can be re-rated while it is in use."""

from __future__ import annotations

import threading
import time
from typing import Callable

# The bucket holds what the rate yields in this time: short enough to be fair, long enough to fill a pipe.
BURST_SECONDS = 0.25
# The most one caller takes at once.
CHUNK = 64 << 10


class TokenBucket:
    """Bytes per second over all callers; None means unlimited.

    The bucket may go into debt by one piece, so a piece larger than the burst still
    passes and the long-run rate is exact.
    """

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._rate = rate
        self._tokens = 0.0
        self._updated = clock()

    @property
    def rate(self) -> int | None:
        return self._rate

    @property
    def piece(self) -> int:
        """The most bytes to take at once: small at low rates, so that every connection keeps moving."""
        return CHUNK if self._rate is None else max(1 << 10, min(CHUNK, self._rate // 8))

    def set_rate(self, rate: int | None) -> None:
        """Change the limit; callers that wait re-calculate at once, and debt of the old rate is forgiven."""
        with self._condition:
            self._rate = rate
            self._tokens = 0.0
            self._updated = self._clock()
            self._condition.notify_all()

    def try_take(self, size: int) -> float:
        """Take `size` bytes and return 0.0, or take nothing and return the seconds until it is worth asking again."""
        with self._condition:
            return self._try(size)

    def take(self, size: int, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until `size` bytes may pass, or until `cancelled()` (looked at twice a second)."""
        with self._condition:
            while not cancelled():
                wait = self._try(size)
                if wait <= 0:
                    return
                self._condition.wait(min(wait, 0.5))

    def _try(self, size: int) -> float:
        if self._rate is None:
            return 0.0
        now = self._clock()
        self._tokens = min(self._rate * BURST_SECONDS, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        # Less than a byte of debt is rounding, and waiting for it might never end.
        if self._tokens <= -1:
            return -self._tokens / self._rate
        self._tokens -= size
        return 0.0
