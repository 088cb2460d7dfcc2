# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit's verdict: change tracking is believed after it was seen to have told of every difference."""

from __future__ import annotations

import threading
import time

from fleetlift_agent.passes import Ranges
from fleetlift_agent.tracing import Tracker
from fleetlift_agent.wire import ExtentKey

# A write may be on the disk, seen by a read, and not reported yet: so long it takes at most for one that is.
PATIENCE = 5.0
# Differences that wait to be explained; each costs some hundred bytes.
_MOST = 1000


class Audit:
    """Takes what a pass found to differ from the copy, and says what of it was never reported. Thread-safe.

    Nothing may take changes out of the tracker meanwhile: a difference is explained by what waits for a pass.
    """

    def __init__(self, tracker: Tracker, patience: float = PATIENCE) -> None:
        self._tracker = tracker
        self._patience = patience
        self._lock = threading.Lock()
        self._doubts: dict[ExtentKey, Ranges] = {}
        self._missed: ExtentKey | None = None

    def differs(self, key: ExtentKey, ranges: Ranges) -> None:
        """The copy does not hold what the source has in these ranges of an extent."""
        with self._lock:
            if self._missed is not None or self._tracker.changed(key, ranges):
                return
            self._doubts[key] = ranges
            if len(self._doubts) >= _MOST:
                self._explain()

    def missed(self) -> ExtentKey | None:
        """An extent that changed without a report; None when every difference was reported."""
        with self._lock:
            self._explain()
            return self._missed

    def _explain(self) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            self._tracker.drain()
            self._doubts = {
                key: ranges for key, ranges in self._doubts.items() if not self._tracker.changed(key, ranges)
            }
            if not self._doubts or self._missed is not None:
                return
            if time.monotonic() > deadline:
                self._missed = min(self._doubts)
                return
            time.sleep(0.2)
