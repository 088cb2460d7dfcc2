# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running API of the lab's cloud; what it holds is the fixture ``store``, which a test's file may define anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_fleet import Fleet, small_store

from lab.cloud.store import Store


@pytest.fixture
def store() -> Store:
    return small_store()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[Fleet]:
    monkeypatch.setenv("NO_PROXY", "*")
    running = Fleet(tmp_path, store)
    try:
        yield running
    finally:
        running.close()
