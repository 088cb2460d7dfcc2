# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Side by side: `make bench`, or `make bench CASES="final size"`. Prints a table and whether the ratios hold.

What was measured is kept in build/bench.json, one entry for each case, so that cases can be run one by one; what is
compared with each other always comes from one run. Needs root and some GiB of memory; nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import CASES, PAYLOAD, SLOW, Row, play
from content import DIRTY
from tools import enter_own_world

from lab import baseroot

REPOSITORY = Path(__file__).resolve().parents[3]
RESULTS = REPOSITORY / "build/bench.json"


def record(row: Row) -> dict[str, Any]:
    measured = asdict(row.measured)
    share = None if row.share is None else round(row.share, 4)
    return {**asdict(row), "measured": {name: round(value, 3) for name, value in measured.items()}, "share": share}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload | link | tool | seconds | MB on the wire (there, back) | CPU s (source, target) | link used |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        measured = row["measured"]
        link = "unlimited" if row["limit"] is None else f"{row['limit']} Mbit/s"
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        lines.append(
            f"| {row['workload']} | {link} | {row['tool']} | {measured['wall']:.2f} "
            f"| {measured['out'] / 1e6:.1f}, {measured['back'] / 1e6:.1f} "
            f"| {measured['cpu_source']:.1f}, {measured['cpu_target']:.1f} | {share} |"
        )
    return lines


class Ratios:
    """What must hold, computed from the cases that were run."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._results = results
        self.lines: list[str] = []

    def row(self, case: str, tool: str = "fleetlift") -> dict[str, Any]:
        rows: list[dict[str, Any]] = self._results[case]["rows"]
        return next(row for row in rows if row["tool"] == tool)

    def wall(self, case: str, tool: str = "fleetlift") -> float:
        return float(self.row(case, tool)["measured"]["wall"])

    def say(self, what: str, value: float, bound: float, *, at_least: bool) -> None:
        holds = value >= bound if at_least else value <= bound
        sign = "≥" if at_least else "≤"
        self.lines.append(f"{'yes' if holds else 'NO ':3}  {what}: {value:.2f} (must be {sign} {bound:.3g})")

    def all(self) -> list[str]:
        known = self._results
        if "initial-slow" in known:
            value = self.wall("initial-slow", "rsync, zstd") / self.wall("initial-slow")
            self.say(f"initial sync at {SLOW} Mbit/s, times as fast as rsync with zstd", value, 1, at_least=True)
        if "initial" in known:
            value = self.wall("initial", "rsync, zstd") / self.wall("initial")
            notes = "; ".join(self.row("initial", tool)["note"] for tool in ("rsync, zstd", "fleetlift"))
            what = f"initial sync, link unlimited, times as fast as rsync with zstd ({notes})"
            self.say(what, value, 1.5, at_least=True)
        if "incompressible" in known:
            row = self.row("incompressible")
            value = row["payload"] / (row["measured"]["wall"] * SLOW * 1e6 / 8 * PAYLOAD)
            self.say("content that does not compress, share of the link's payload", value, 0.95, at_least=True)
        for case, link in (("delta", "link unlimited"), ("delta-slow", f"{SLOW} Mbit/s")):
            if case in known:
                measured = self.row(case)["measured"]
                value = (measured["out"] + measured["back"]) / self.row(case)["payload"]
                self.say(f"1 % changed, {link}, bytes for each byte changed at 4 KiB", value, 2, at_least=False)
        for case, link in (("final", "link unlimited"), ("final-slow", f"{SLOW} Mbit/s")):
            if case in known:
                theirs = min(self.wall(case, tool) for tool in ("rsync", "rsync, zstd"))
                what, bound = f"final pass, {link}, times as fast as the faster rsync", 5.0
                if case == "final-slow":
                    # What is dirty does not compress: nobody is faster than the link.
                    most = theirs / (DIRTY / (SLOW * 1e6 / 8 * PAYLOAD))
                    what, bound = f"{what}; the link allows {most:.2f}", min(bound, 0.95 * most)
                self.say(what, theirs / self.wall(case), bound, at_least=True)
        if "size" in known:
            small, large = (row["measured"]["wall"] for row in known["size"]["rows"])
            notes = "; ".join(row["note"] for row in known["size"]["rows"])
            self.say(f"final pass, 16 GiB over 2 GiB ({notes})", large / small, 1.5, at_least=False)
        if "tracking" in known:
            row = self.row("tracking", "tracked")
            slower = row["measured"]["wall"] / self.wall("tracking", "not tracked") - 1
            self.lines.append(f"     tracking: {row['note']}; the writer takes {slower:+.0%} longer")
        return self.lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of: {', '.join(CASES)}; all when none is named")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    cache = Path(os.environ.get("FLEETLIFT_LAB_DIR", "/var/lib/fleetlift-lab")) / "cache"
    base_root = baseroot.build(cache, print)
    with tempfile.TemporaryDirectory(prefix="fleetlift-bench-", dir="/dev/shm") as directory:
        enter_own_world(Path(directory), base_root)
        for case in options.cases or CASES:
            print(f"{case}:", flush=True)
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                rows = play(case, Path(scratch), base_root)
            results[case] = {"time": time.strftime("%FT%TZ", time.gmtime()), "rows": [record(row) for row in rows]}
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1))
    print()
    print("\n".join(table([row for case in CASES if case in results for row in results[case]["rows"]])))
    print()
    print("\n".join(Ratios(results).all()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
