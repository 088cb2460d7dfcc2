# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One transfer's part of the site's bandwidth, kept up by whoever watches the transfer.

There is no process that shares the budget out: each play looks at the ledger of claims while it polls its agent anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Union

from ..module_utils.bandwidth import LEASE, LEAST, Claim, at_rest, budget_at, claims_from, next_limit, with_limit
from ..module_utils.findings import refuse
from ..module_utils.kept_file import shared_json

Send = Callable[[dict[str, Any]], Any]
# Seconds after which a limit is sent again although it is the same, well before its lease ends.
RENEWAL = LEASE / 3
# Seconds between two looks at the ledger, for tasks that poll more often.
LOOK_EVERY = 2.0


class NoShare:
    """The part of a budget that there is not: limits are as the task's own options say."""

    limit = 0

    def begin(self, sends_already: bool) -> dict[str, Any] | None:
        return {}

    def keep(self, send: Send) -> None:
        """Nothing to keep up."""

    def rest(self, send: Send) -> None:
        """Nothing to give back."""

    def leave(self) -> None:
        """Nothing to give back."""


class BandwidthShare:
    """The claim of *name* in the ledger at *path*.

    *cap* is the source's own limit in bytes/s, 0 is none and None what it was; *pause* are the least seconds between
    two looks at the ledger.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        budget: int,
        schedule: list[dict[str, Any]],
        weight: int,
        cap: int | None,
        pause: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._name = name
        self._budget = budget
        self._schedule = schedule
        self._weight = weight
        self._cap = cap
        self._clock = clock
        self._pause = pause
        self._sent: tuple[int, float] = (0, 0.0)
        self._looked = 0.0

    @property
    def limit(self) -> int:
        """The limit that was sent last, in bytes/s."""
        return self._sent[0]

    def begin(self, sends_already: bool) -> dict[str, Any] | None:
        """What the order to begin must say about bandwidth; None while the others have left no room yet.

        An agent that *sends already* is given at least the least limit at once: it must not go on with an older one.
        """
        orders: list[dict[str, Any]] = []
        self._renew(orders.append, LEAST if sends_already else 0)
        return orders[0] if orders else None

    def keep(self, send: Send) -> None:
        """Renew the claim, and *send* the agent its limit where that changed or has to be renewed."""
        if self._clock() - self._looked >= self._pause:
            self._renew(send, self._sent[0])

    def rest(self, send: Send) -> None:
        """The transfer is in sync, and will not be watched: it keeps a small reserve, and the others get the rest."""
        with self._claims() as (claims, now):
            own = claims.get(self._name)
        if own is None or not own.limit:
            return
        resting = at_rest(own, now)
        send({"bandwidth_limit": resting.limit})
        with self._claims() as (claims, now):
            claims[self._name] = resting
        self._sent = (resting.limit, now)

    def leave(self) -> None:
        """Nothing is sent any more."""
        with self._claims() as (claims, _now):
            claims.pop(self._name, None)

    def _renew(self, send: Send, at_least: int) -> None:
        self._looked = self._clock()
        with self._claims() as (claims, now):
            own = claims.get(self._name) or Claim(self._weight, 0, at_least, at_least, 0.0)
            cap = own.cap if self._cap is None else self._cap
            # One that comes back uses what it was left with.
            limit = own.limit if own.runs(now) else max(own.reserve, at_least)
            own = Claim(self._weight, cap, limit, min(own.reserve, limit), own.until)
            own = with_limit(own, limit, now)
            wanted = next_limit(self._budget_now(), {**claims, self._name: own}, self._name, now)
            # A limit is claimed before it is raised, and given back after it was lowered.
            claims[self._name] = with_limit(own, max(wanted, limit), now)
        if not wanted:
            return
        last, at = self._sent
        if wanted != last or now - at >= RENEWAL:
            after = with_limit(own, wanted, now).reserve
            send({"bandwidth_limit": wanted, "bandwidth_lease": LEASE, "bandwidth_after_lease": after})
            self._sent = (wanted, now)
        if wanted < limit:
            with self._claims() as (claims, _now):
                claims[self._name] = with_limit(own, wanted, now)

    def _budget_now(self) -> int:
        return budget_at(self._budget, self._schedule, datetime.fromtimestamp(self._clock(), timezone.utc))

    @contextmanager
    def _claims(self) -> Iterator[tuple[dict[str, Claim], float]]:
        with shared_json(self._path) as record:
            now = self._clock()
            claims = claims_from(record, now)
            yield claims, now
            record.clear()
            record.update({name: claim.record() for name, claim in claims.items()})


Share = Union[NoShare, BandwidthShare]


def share_for(arguments: dict[str, Any], cap: int | None) -> Share:
    """The share that a task's ``bandwidth_*`` options describe. Raises ``Refusal`` for a schedule without windows."""
    schedule = arguments["bandwidth_schedule"] or []
    try:
        budgets = [arguments["bandwidth_budget"], *(int(entry["budget"]) for entry in schedule)]
        budget_at(0, schedule, datetime.now(timezone.utc))
    except (KeyError, TypeError, ValueError) as error:
        raise refuse(
            "BANDWIDTH_SCHEDULE_INVALID",
            "fleetlift_bandwidth_schedule",
            f"The schedule of the bandwidth budget cannot be read: {error}.",
            "Give a list of entries with a window, such as '08:00-18:00 Europe/Berlin', and a budget in bytes/s.",
        ) from error
    if not any(budgets) or not arguments["bandwidth_ledger"]:
        return NoShare()
    if min(budgets) < LEAST:
        raise refuse(
            "BANDWIDTH_BUDGET_TOO_SMALL",
            "fleetlift_bandwidth_budget",
            f"A bandwidth budget of {min(budgets)} bytes/s is less than one transfer needs.",
            f"Give at least {LEAST} bytes/s, also outside of the schedule's windows.",
        )
    return BandwidthShare(
        Path(arguments["bandwidth_ledger"]).expanduser(),
        arguments["migration"],
        budget=arguments["bandwidth_budget"],
        schedule=schedule,
        weight=arguments["bandwidth_share"],
        cap=cap,
        pause=LOOK_EVERY,
    )
