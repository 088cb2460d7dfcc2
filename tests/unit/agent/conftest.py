# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the agent's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loop_pair import MakePair, pair_factory


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """make_pair(source_size, target_size=None, disks=1) builds a sender and a receiver."""
    with pair_factory() as make:
        yield make
