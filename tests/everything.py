# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run all tests, two checks side by side: ``make test``.

    python tests/everything.py [CHECK...]

Each check is a command with a lab of its own where it needs one. What it says goes to build/test/CHECK.log, and is
shown when it fails; there is one line at its start and one at its end. Most of a check is waiting (for a link, a boot,
a lock), so two of them side by side take little longer than one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOGS = REPOSITORY / "build/test"
AT_ONCE = 2


@dataclass(frozen=True)
class Check:
    """One command; ``environment`` comes on top of this process's own."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def run(self) -> bool:
        """Run it to its end; whether it passed."""
        with self.log.open("wb") as log:
            done = subprocess.run(
                self.command,
                cwd=REPOSITORY,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return done.returncode == 0


def make(target: str) -> Check:
    """A target of the Makefile that needs no lab."""
    return Check(target, ("make", "--no-print-directory", target))


def molecule(name: str, *scenarios: str, lab: str = "tests/molecule-lab.yml") -> Check:
    """Molecule scenarios in a lab of their own."""
    return Check(name, ("tests/molecule.sh", *scenarios), {"FLEETLIFT_LAB": f"t{name}", "FLEETLIFT_LAB_FILE": lab})


# The long ones first, so that none of them runs alone at the end; but what fails soonest before all.
CHECKS = (
    make("lint"),
    molecule("boot", "boot", lab="tests/boot-lab.yml"),
    make("unit"),
    molecule("back", "rollback", "resume"),
    # In this order: the preflight looks at servers that are not migrated yet.
    molecule("move", "preflight", "migrate", "stress", "refuse"),
    molecule("offline", "offline", lab="tests/offline-lab.yml"),
    make("sanity"),
    make("artifact"),
)


def say(line: str) -> None:
    """Print a line in one piece: print() writes its end by itself, and another thread's line may come between."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def attempt(check: Check) -> bool:
    started = time.monotonic()
    say(f"{check.name}: {' '.join(check.command)}")
    passed = check.run()
    say(f"{check.name}: {'passed' if passed else 'FAILED'} after {time.monotonic() - started:.0f} s")
    return passed


def main() -> int:
    wanted = sys.argv[1:]
    unknown = sorted(set(wanted) - {check.name for check in CHECKS})
    if unknown:
        sys.exit(f"there is no check {', '.join(unknown)}; there are {', '.join(check.name for check in CHECKS)}")
    checks = [check for check in CHECKS if not wanted or check.name in wanted]
    LOGS.mkdir(parents=True, exist_ok=True)
    failed = []
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        running = {pool.submit(attempt, check): check for check in checks}
        for done in as_completed(running):
            if not done.result():
                failed.append(running[done])
    for check in failed:
        print(f"\n{check.name}, from {check.log.relative_to(REPOSITORY)}:", flush=True)
        sys.stdout.buffer.write(check.log.read_bytes()[-40_000:])
        sys.stdout.buffer.flush()
    print(f"\n{len(checks) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
