# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a source may begin its cutover now, has to wait for others, or is held back: a ledger in, a verdict out.

The ledger is about one run. It names the sources of the run and what has become of each; who is not in it is not
waited for, so that a run that was cut off is continued by the next one with what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .findings import Finding
from .window import parse_window

WAITING, RUNNING, OK, FAILED, HELD = "waiting", "running", "ok", "failed", "held"
ENDED = (OK, FAILED, HELD)


@dataclass(frozen=True)
class Rules:
    """What a run obeys: ``failure_budget`` cutovers may fail, not one more. ``concurrency`` 0 is no limit.

    ``timeout`` is in seconds.
    """

    concurrency: int
    failure_budget: int
    approval: bool
    timeout: float


@dataclass(frozen=True)
class Place:
    """A source in the ledger; ``since`` in epoch seconds."""

    wave: int
    state: str = WAITING
    since: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """The sources of a run by name, the waves that were approved or declined, and the one that is being asked about."""

    sources: Mapping[str, Place]
    approved: frozenset[int] = frozenset()
    declined: frozenset[int] = frozenset()
    asking: int | None = None

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "sources": {name: vars(place) for name, place in self.sources.items()},
            "approved": sorted(self.approved),
            "declined": sorted(self.declined),
            "asking": self.asking,
        }

    def of_wave(self, wave: int) -> dict[str, Place]:
        return {name: place for name, place in self.sources.items() if place.wave == wave}


def ledger_from(record: Mapping[str, Any]) -> Ledger:
    """The ledger in *record*, the JSON form; an empty one for an empty record."""
    return Ledger(
        {name: Place(**place) for name, place in (record.get("sources") or {}).items()},
        frozenset(record.get("approved") or ()),
        frozenset(record.get("declined") or ()),
        record.get("asking"),
    )


def opened(waves: Mapping[str, int]) -> Ledger:
    """The ledger at the beginning of a run over the sources in *waves*."""
    return Ledger({name: Place(int(wave)) for name, wave in waves.items()})


def moved(ledger: Ledger, source: str, wave: int, state: str, now: float) -> Ledger:
    """*ledger* with *source* in another state."""
    sources = {**ledger.sources, source: Place(wave, state, now)}
    return Ledger(sources, ledger.approved, ledger.declined, ledger.asking)


def asked(ledger: Ledger, wave: int) -> Ledger:
    """*ledger* while somebody is asked about *wave*."""
    return Ledger(ledger.sources, ledger.approved, ledger.declined, wave)


def answered(ledger: Ledger, wave: int, yes: bool) -> Ledger:
    """*ledger* with the answer about *wave*."""
    approved, declined = (
        (ledger.approved | {wave}, ledger.declined) if yes else (ledger.approved, ledger.declined | {wave})
    )
    return Ledger(ledger.sources, approved, declined, None)


@dataclass(frozen=True)
class Verdict:
    """``kind`` is go, wait, ask or held; ``finding`` says why one is held, ``reason`` why one waits."""

    kind: str
    reason: str = ""
    finding: Finding | None = field(default=None)


def verdict(ledger: Ledger, source: str, wave: int, rules: Rules, window: str, now: datetime) -> Verdict:
    """Whether *source* of *wave* may begin at *now*, an aware time. *window* is empty or in the form of a window."""
    seconds = now.timestamp()
    others = {name: place for name, place in ledger.sources.items() if name != source}
    failed = _failed(others, rules, seconds)
    if len(failed) > rules.failure_budget:
        return _held(
            "FAILURE_BUDGET_SPENT",
            source,
            f"The cutover of {source} was not begun: {', '.join(failed)} failed in this run, and the failure budget is"
            f" {rules.failure_budget}. It is still being replicated.",
            "Mend what failed, then run the same playbook again; or raise fleetlift_failure_budget.",
            failed=failed,
        )
    unfinished = sorted(
        name for name, place in others.items() if place.wave < wave and not _ended(place, rules, seconds)
    )
    if unfinished:
        return Verdict("wait", f"waiting for the earlier waves: {_some(unfinished)}")
    if rules.approval and wave not in ledger.approved and any(place.wave < wave for place in others.values()):
        if wave in ledger.declined:
            return _held(
                "WAVE_NOT_APPROVED",
                source,
                f"The cutover of {source} was not begun: wave {wave} was not approved. It is still being replicated.",
                "Run the same playbook again when the wave may begin.",
                wave=wave,
            )
        return Verdict("ask" if ledger.asking is None else "wait", f"waiting for the approval of wave {wave}")
    running = [
        name
        for name, place in others.items()
        if place.wave == wave and place.state == RUNNING and not _ended(place, rules, seconds)
    ]
    if rules.concurrency and len(running) >= rules.concurrency:
        return Verdict("wait", f"waiting for one of {_some(sorted(running))} to end")
    if window and not parse_window(window).is_open(now):
        opening = parse_window(window).next_opening(now)
        return _held(
            "WINDOW_CLOSED",
            source,
            f"The cutover of {source} was not begun: its window is {window}, and it is"
            f" {now.astimezone(opening.tzinfo):%a %H:%M} there. It is still being replicated.",
            f"Run the same playbook again when the window is open, from {opening:%a %Y-%m-%d %H:%M %Z} on.",
            window=window,
            opens=opening.isoformat(),
        )
    return Verdict("go")


def question(ledger: Ledger, wave: int, rules: Rules, now: float) -> str:
    """What somebody has to be told to decide about *wave*."""
    before = {name: place for name, place in ledger.sources.items() if place.wave < wave}
    ended_well = sum(place.state == OK for place in before.values())
    failed, held = _failed(before, rules, now), sorted(name for name, place in before.items() if place.state == HELD)
    lines = [f"The waves before wave {wave} have ended: {ended_well} of {len(before)} sources were cut over."]
    lines += [f"Failed: {', '.join(failed)}."] if failed else []
    lines += [f"Not begun: {', '.join(held)}."] if held else []
    return " ".join([*lines, f"Begin wave {wave} ({_some(sorted(ledger.of_wave(wave)))})? [yes/no] "])


def _failed(places: Mapping[str, Place], rules: Rules, now: float) -> list[str]:
    return sorted(name for name, place in places.items() if place.state == FAILED or _lost(place, rules, now))


def _lost(place: Place, rules: Rules, now: float) -> bool:
    """A cutover of which nothing was heard for too long: its server became unreachable, and nobody noted the end."""
    return place.state == RUNNING and now - place.since > rules.timeout


def _ended(place: Place, rules: Rules, now: float) -> bool:
    return place.state in ENDED or _lost(place, rules, now)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) < 6 else f"{', '.join(listed[:5])} and {len(listed) - 5} more"


def _held(code: str, source: str, cause: str, action: str, **evidence: Any) -> Verdict:
    return Verdict("held", cause, Finding(code, "warning", source, cause, action, evidence))
