# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A token bucket that all connections share and that can be re-rated while it is in use."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Callable

# The bucket holds what the rate yields in this time: short enough to be fair, long enough to fill a pipe.
BURST_SECONDS = 0.25
# The most one caller takes at once.
CHUNK = 64 << 10


@dataclass(frozen=True)
class Lease:
    """A rate that holds for so many seconds, unless it is set again by then; `rate_after` bytes/s apply from then on.

    Whoever shares a line between several senders can so take back what it has given, even when it cannot reach them.
    """

    seconds: float
    rate_after: int


class TokenBucket:
    """Bytes per second over all callers; None means unlimited.

    The bucket may go into debt by one piece, so a piece larger than the burst still
    passes and the long-run rate is exact.
    """

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._rate = rate
        self._lease: Lease | None = None
        self._tokens = 0.0
        self._updated = self._granted = clock()

    @property
    def rate(self) -> int | None:
        lease = self._lease
        if lease is not None and self._clock() - self._granted >= lease.seconds:
            return lease.rate_after
        return self._rate

    @property
    def piece(self) -> int:
        """The most bytes to take at once: small at low rates, so that every connection keeps moving."""
        rate = self.rate
        return CHUNK if rate is None else max(1 << 10, min(CHUNK, rate // 8))

    def set_rate(self, rate: int | None, lease: Lease | None = None) -> None:
        """Change the limit; callers that wait re-calculate at once, and debt of the old rate is forgiven.

        The same rate again renews its lease, and forgives nothing.
        """
        with self._condition:
            same = rate == self.rate
            self._rate, self._lease, self._granted = rate, lease, self._clock()
            if not same:
                self._tokens = 0.0
                self._updated = self._granted
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
        rate = self.rate
        if rate is None:
            return 0.0
        now = self._clock()
        self._tokens = min(rate * BURST_SECONDS, self._tokens + (now - self._updated) * rate)
        self._updated = now
        # Less than a byte of debt is rounding, and waiting for it might never end.
        if self._tokens <= -1:
            return -self._tokens / rate
        self._tokens -= size
        return 0.0
