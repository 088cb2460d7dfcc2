# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rounds of stress: `make stress ROUNDS=20 SEED=1`. Ends with one line: how many passed and how many failed.

Needs root: loop devices, mounts, network namespaces, tracefs.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    options = parser.parse_args()
    enter_own_mounts()
    failed = 0
    for number in range(options.first, options.first + options.rounds):
        plan = Plan.draw(options.seed, number)
        print(f"round {number}: {plan}", end=" ... ", flush=True)
        begun = time.monotonic()
        failure = attempt(plan)
        print("passed" if failure is None else "FAILED", f"in {time.monotonic() - begun:.1f} s", flush=True)
        if failure is not None:
            failed += 1
            print(failure)
            print(f"Again: make stress ROUNDS=1 SEED={options.seed} FIRST={number}", flush=True)
    print(f"{options.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
