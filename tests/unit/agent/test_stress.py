# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A few rounds of `make stress`, and what they rest on: writers whose database is found incomplete when it is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import stress_writers
from loop_pair import wait_for

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


@pytest.mark.root
@pytest.mark.parametrize(("seed", "rounds"), [("935", 3), ("new", 2)])
def test_working_filesystems_survive_faults_and_arrive_complete(seed: str, rounds: int) -> None:
    """Three filesystems on two layouts, with masking and without, and five kinds of faults; and what nobody has seen.

    A round that fails names its seed, and can be played again.
    """
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests/stress.py"), "--rounds", str(rounds), "--seed", seed],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'agent'}:{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == f"{rounds} passed, 0 failed", done.stdout
    assert done.returncode == 0


def test_row_that_is_missing_or_damaged_is_noticed(tmp_path: Path) -> None:
    noted = tmp_path / "acknowledged"
    top = tmp_path / "top"
    top.mkdir()
    command = [sys.executable, stress_writers.__file__, str(top), str(noted), "--pace", "0.001"]
    with subprocess.Popen(command) as writers:
        try:
            wait_for(lambda: stress_writers.acknowledged(noted) >= 5, "five rows")
        finally:
            writers.terminate()
    assert writers.returncode == 0
    database, last = top / stress_writers.DATABASE, stress_writers.acknowledged(noted)
    assert stress_writers.missing_rows(database, last) == []
    assert stress_writers.missing_rows(database, last + 2)[-1] == f"row {last + 2} of {last + 2} is missing"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE journal SET note = x'00' WHERE seq = 3")
    assert stress_writers.missing_rows(database, last) == ["row 3 is not what was inserted"]
