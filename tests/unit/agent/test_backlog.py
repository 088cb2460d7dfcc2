# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the numbers of a live copy mean."""

from __future__ import annotations

import pytest
from fleetlift_agent.backlog import BacklogMeter, shrinks

MIB = 1 << 20


def test_forecast_follows_backlog_and_rate() -> None:
    meter = BacklogMeter()
    meter.look(0, backlog=100 * MIB, written=0)
    assert meter.forecast(0).lag is None
    assert meter.forecast(0).final_pass is None
    meter.passed(0, seconds=10, looked_at=100 * MIB)
    meter.look(10, backlog=50 * MIB, written=50 * MIB)
    forecast = meter.forecast(10)
    assert forecast.send_rate == 10 * MIB
    assert forecast.write_rate == 5 * MIB
    assert forecast.lag == 10
    assert forecast.final_pass == pytest.approx(5.3)
    assert forecast.fits(6) and not forecast.fits(5)


def test_without_a_backlog_there_is_no_lag() -> None:
    meter = BacklogMeter()
    meter.passed(0, seconds=1, looked_at=MIB)
    meter.look(100, backlog=0, written=0)
    assert meter.forecast(100).lag == 0
    assert meter.forecast(103).lag == 3


def test_another_tracker_starts_counting_again() -> None:
    meter = BacklogMeter()
    meter.look(0, backlog=0, written=500 * MIB)
    meter.look(10, backlog=0, written=10 * MIB)
    meter.look(20, backlog=0, written=20 * MIB)
    assert meter.forecast(20).write_rate == MIB


def test_a_pass_too_small_to_tell_leaves_the_rate_alone() -> None:
    meter = BacklogMeter()
    meter.passed(0, seconds=10, looked_at=100 * MIB)
    meter.passed(20, seconds=0.5, looked_at=4096)
    assert meter.forecast(21).send_rate == 10 * MIB


@pytest.mark.parametrize(
    ("backlogs", "gains"),
    [([], True), ([9], True), ([9, 9], True), ([100, 50, 39], True), ([100, 50, 41], False), ([1, 2, 3], False)],
)
def test_passes_go_on_while_they_gain(backlogs: list[int], gains: bool) -> None:
    assert shrinks(backlogs) is gains
