# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One budget of bytes per second, shared by all transfers that run.

Each transfer has a claim: the limit that its agent may be using, until when, and the reserve that it falls back to by
itself when nobody renews the limit. What claims stand for never exceeds the budget, whoever is late or dead: a limit is
claimed before it is raised, given back only after it was lowered, and a claim that nobody renews becomes its reserve
no sooner than its agent has fallen back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from .window import Window, parse_window

# The least limit that an agent takes, in bytes/s.
LEAST = 16 << 10
# What is kept of its last limit by a transfer that nobody watches any more: the controller may be dead, but the copy
# goes on. In sync it sends only what changes, and needs less.
LAPSED_PART = 4
RESTING_PART = 20
# Seconds for which an agent keeps a limit that is not renewed, and what is added before others may use it: an order may
# be that late.
LEASE = 120.0
MARGIN = 60.0
# Seconds after which a claim that nobody renews is forgotten altogether.
FORGOTTEN = 14 * 86400.0


@dataclass(frozen=True)
class Claim:
    """What one transfer may use: ``limit`` until ``until`` (epoch seconds), then ``reserve``; never more than ``cap``.

    All in bytes/s. A ``cap`` of 0 is none; a ``limit`` of 0 is a transfer that waits to begin.
    """

    weight: int
    cap: int
    limit: int
    reserve: int
    until: float

    def runs(self, now: float) -> bool:
        return now < self.until

    def stands_for(self, now: float) -> int:
        """The most that the agent can be using, in bytes/s."""
        return max(self.limit, self.reserve) if self.runs(now) else self.reserve

    def record(self) -> dict[str, Any]:
        return asdict(self)


Claims = Mapping[str, Claim]


def claims_from(record: Mapping[str, Any], now: float) -> dict[str, Claim]:
    """The claims in *record*, the form in which they are kept, without forgotten ones."""
    claims = {name: Claim(**value) for name, value in record.items()}
    return {name: claim for name, claim in claims.items() if now < claim.until + FORGOTTEN}


def fair_limits(budget: int, claims: Claims, now: float) -> dict[str, int]:
    """The limit that each running claim ought to have: by weight, and what one's cap leaves over goes to the others."""
    running = {name: claim for name, claim in claims.items() if claim.runs(now)}
    left = budget - sum(claim.reserve for name, claim in claims.items() if name not in running)
    fair: dict[str, int] = {}
    while running:
        whole = sum(claim.weight for claim in running.values())
        capped = {
            name: claim.cap for name, claim in running.items() if claim.cap and claim.cap * whole <= left * claim.weight
        }
        if not capped:
            fair.update({name: max(0, left) * claim.weight // whole for name, claim in running.items()})
            break
        fair.update(capped)
        left -= sum(capped.values())
        running = {name: claim for name, claim in running.items() if name not in capped}
    return fair


def next_limit(budget: int, claims: Claims, name: str, now: float) -> int:
    """The limit that *name*, which has a claim, may use from now on, in bytes/s; 0 while there is none for it yet.

    It grows only into what no other claim stands for, so that the sum stays within the budget while the others have not
    been lowered yet.
    """
    own = claims[name]
    fair = fair_limits(budget, claims, now).get(name, 0)
    free = budget - sum(claim.stands_for(now) for other, claim in claims.items() if other != name)
    allowed = min(fair, free)
    if allowed >= LEAST:
        return allowed
    # An agent that sends already cannot be set lower than this; one that does not has to wait.
    return LEAST if own.limit else 0


def with_limit(claim: Claim, limit: int, now: float) -> Claim:
    """*claim* renewed with *limit*."""
    reserve = min(limit, max(LEAST, limit // LAPSED_PART))
    return replace(claim, limit=limit, reserve=reserve, until=now + LEASE + MARGIN)


def at_rest(claim: Claim, now: float) -> Claim:
    """*claim* of a transfer that is in sync and that nobody watches from *now* on."""
    reserve = min(claim.limit, max(LEAST, claim.limit // RESTING_PART))
    return replace(claim, limit=reserve, reserve=reserve, until=now)


def budget_at(budget: int, schedule: Iterable[Mapping[str, Any]], now: datetime) -> int:
    """The budget at *now*, an aware time: that of the first open window of *schedule*, else *budget*. 0 is none.

    Raises ``ValueError`` for what is no window.
    """
    for entry in schedule:
        window: Window = parse_window(str(entry["window"]))
        if window.is_open(now):
            return int(entry["budget"])
    return budget
