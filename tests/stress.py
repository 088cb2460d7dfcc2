# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rounds of stress: `make stress ROUNDS=20 SEED=1`. Ends with one line: how many passed and how many failed.

`make stress SEED=new` draws rounds that nobody has seen, and says how to see them again; with MINUTES=480 in place of
ROUNDS it goes on for a night. Needs root: loop devices, mounts, network namespaces, tracefs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Iterator
from subprocess import SubprocessError

from fleetlift_agent.errors import AgentError
from loop_pair import pair_factory
from own_mounts import enter_own_mounts
from stress_round import Plan, play
from veth_link import veth_link


def attempt(plan: Plan) -> str | None:
    """Play one round; returns what went wrong."""
    try:
        with pair_factory() as make_pair, veth_link() as link:
            play(plan, make_pair, link)
    except (AssertionError, AgentError, OSError, SubprocessError, LookupError, TypeError, ValueError):
        # Whatever breaks a round: the others are played.
        return traceback.format_exc()
    return None


def seed(text: str) -> int:
    """A seed in digits, or one from the clock."""
    return int(time.time()) if text == "new" else int(text)


def numbers(first: int, rounds: int, minutes: float | None) -> Iterator[int]:
    """The numbers of the rounds: so many, or as many as begin within the time."""
    if minutes is None:
        yield from range(first, first + rounds)
        return
    end = time.monotonic() + 60 * minutes
    yield from itertools.takewhile(lambda _number: time.monotonic() < end, itertools.count(first))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="begin rounds for so long, however many that are")
    parser.add_argument("--seed", type=seed, default=1, help="a number, or: new")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    options = parser.parse_args()
    enter_own_mounts()
    passed = failed = 0
    for number in numbers(options.first, options.rounds, options.minutes):
        plan = Plan.draw(options.seed, number)
        print(f"round {number}: {plan}", end=" ... ", flush=True)
        begun = time.monotonic()
        failure = attempt(plan)
        print("passed" if failure is None else "FAILED", f"in {time.monotonic() - begun:.1f} s", flush=True)
        if failure is None:
            passed += 1
        else:
            failed += 1
            print(failure)
            print(f"Again: make stress ROUNDS=1 SEED={options.seed} FIRST={number}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
