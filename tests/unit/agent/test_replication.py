# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication from end to end between two daemons."""

from __future__ import annotations

import hashlib
import os

import pytest
from loop_pair import MIB, MakePair

pytestmark = pytest.mark.root


def test_running_source_ends_up_identical_on_the_target(make_pair: MakePair) -> None:
    pair = make_pair(24 * MIB + 4096, 32 * MIB)
    source = pair.disks[0][0]
    source.write(0, os.urandom(9 * MIB))
    source.write(20 * MIB, b"text " * 100000)
    pair.start()
    state = pair.replicate()
    pair.assert_identical()
    assert state["passes"][0]["kind"] == "initial"
    cutover = pair.prepare()
    assert cutover["phase"] == "prepared", cutover
    assert cutover["verified"]
    assert pair.receiver.state["sealed"]["root_hash"] == cutover["root_hash"]
    print(state, cutover, hashlib.sha256)
