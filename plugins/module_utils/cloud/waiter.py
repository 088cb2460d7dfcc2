# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for the cloud, with a deadline; or not waiting, with the same interface."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
GROWTH = 1.4


class Waiter:
    """Pauses between looks at something, longer each time, until *timeout* seconds have passed since it was made.

    The longest pause keeps a few hundred hosts that wait at once under the account's 40 DescribeInstances a second;
    the spread keeps them from asking in step.
    """

    patient = True

    def __init__(
        self,
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._spread = spread
        self._start = clock()
        self._pause = FIRST_PAUSE

    @property
    def waited(self) -> float:
        """Seconds since the waiter was made."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds until the deadline, never less than zero."""
        return max(0.0, self._timeout - self.waited)

    def pause(self) -> bool:
        """Sleeps a while and returns True; returns False, at once, when the deadline has passed."""
        if not self.left:
            return False
        self._sleep(min(self._spread(self._pause * 0.8, self._pause), self.left))
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
        return True

    def hasten(self) -> None:
        """Starts again with the shortest pause: something has just changed, so the next change may be near."""
        self._pause = FIRST_PAUSE


class DummyWaiter:
    """A waiter that never waits: for ``wait=false`` and check mode."""

    patient = False
    waited = 0.0
    left = 0.0

    def pause(self) -> bool:
        return False

    def hasten(self) -> None:
        """Nothing to hasten."""
