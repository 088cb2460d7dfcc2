# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a pass is what it was in the end."""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import Any, Callable

from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.copying import Copy
from fleetlift_agent.passes import Counters, NothingNew, PassWork


class SlowState:
    """A state whose ticker is slow: it says what it knew a while ago."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"totals": {field.name: 0 for field in fields(Counters)}, "passes": []}
        self.ticking = threading.Event()
        self.go_on = threading.Event()

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def update(self, **values: Any) -> None:
        self.values.update(values)

    def touch(self, **values: Any) -> None:
        if threading.current_thread().name == "ticker":
            self.ticking.set()
            self.go_on.wait(20)
        self.values.update(values)


class TickedReplicator:
    """Its pass is published by the ticker, and sends something after that."""

    sizes = [0]

    def __init__(self, state: SlowState) -> None:
        self.publish: Callable[[], None] = lambda: None
        self.ticker = threading.Thread(target=lambda: self.publish(), name="ticker")
        self._state = state

    def run_pass(self, work: PassWork, *_arguments: Any) -> None:
        self.ticker.start()
        assert self._state.ticking.wait(20)
        work.count(bytes_sent=4096)
        threading.Timer(0.2, self._state.go_on.set).start()

    def roots(self) -> Any:
        raise ConnectionLost("there are none here")


def test_ticker_does_not_take_back_what_is_said_at_the_end_of_a_pass() -> None:
    state = SlowState()
    replicator = TickedReplicator(state)
    copy = Copy(
        disks=[],
        open_tracker=lambda: None,  # type: ignore[arg-type, return-value]
        mask=None,  # type: ignore[arg-type]
        replicator=lambda **_arguments: replicator,  # type: ignore[arg-type, return-value]
        state=state,  # type: ignore[arg-type]
        max_passes=1,
        max_downtime=1.0,
        audit=False,
    )
    replicator.publish = copy.publish
    copy.run_pass("delta", NothingNew(), lambda: False, total=0)
    replicator.ticker.join()
    assert state.values["totals"]["bytes_sent"] == 4096
