# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Windows: when they are open, and when they open next."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.window import DAYS, parse_window
from hypothesis import given
from hypothesis import strategies as st

INSTANTS = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31), timezones=st.just(timezone.utc))
CLOCKS = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda clock: f"{clock[0]:02}:{clock[1]:02}")
ZONES = st.sampled_from(["", " UTC", " Europe/Berlin", " Asia/Shanghai", " America/St_Johns"])
DAY_PARTS = st.sampled_from(["", "Mon-Fri ", "Sat,Sun ", "Fri-Mon ", "wed "])


@st.composite
def windows(draw):
    opens, closes = draw(st.lists(CLOCKS, min_size=2, max_size=2, unique=True))
    return parse_window(f"{draw(DAY_PARTS)}{opens}-{closes}{draw(ZONES)}")


def at(text):
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "moment", "is_open"),
    [
        ("08:00-18:00", "2026-11-25T08:00:00+00:00", True),
        ("08:00-18:00", "2026-11-25T18:00:00+00:00", False),
        ("22:00-05:00", "2026-11-25T23:00:00+00:00", True),
        ("22:00-05:00", "2026-11-25T04:59:59+00:00", True),
        ("22:00-05:00", "2026-11-25T05:00:00+00:00", False),
        ("22:00-05:00 Europe/Berlin", "2026-11-25T21:00:00+00:00", True),
        ("22:00-05:00 Europe/Berlin", "2026-11-25T20:59:00+00:00", False),
        ("22:00-05:00 Europe/Berlin", "2026-07-25T20:30:00+00:00", True),
        # The night of a Friday belongs to Friday, also after midnight.
        ("Fri 22:00-05:00", "2026-11-28T04:00:00+00:00", True),
        ("Fri 22:00-05:00", "2026-11-27T04:00:00+00:00", False),
        ("20:00-24:00", "2026-11-25T23:59:00+00:00", True),
    ],
)
def test_window_is_open_between_its_times(text, moment, is_open):
    assert parse_window(text).is_open(at(moment)) is is_open


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("22-05", "form"),
        ("25:00-05:00", "time of day"),
        ("22:00-05:60", "time of day"),
        ("08:00-08:00", "same time"),
        ("Mon-Foo 08:00-09:00", "day"),
        ("Mon-Tue-Wed 08:00-09:00", "day"),
        ("08:00-09:00 Mars/Base", "time zone"),
        ("08:00-09:00 ../etc/passwd", "time zone"),
    ],
)
def test_what_is_no_window_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_window(text)


@given(windows(), INSTANTS)
def test_next_opening_is_open_and_nothing_before_it_is(window, now):
    opening = window.next_opening(now)
    assert opening >= now
    # A change of the clocks can skip the very minute of the opening, by at most an hour.
    assert window.is_open(opening) or any(window.is_open(opening + timedelta(minutes=m)) for m in range(61))
    if opening - now > timedelta(minutes=1):
        assert not window.is_open(opening - timedelta(minutes=1)) or opening == now
        assert not window.is_open(now)


@given(st.sampled_from(DAYS), st.sampled_from(DAYS), INSTANTS)
def test_range_of_days_holds_both_ends(first, last, now):
    days = parse_window(f"{first}-{last} 00:00-24:00".replace("24:00", "23:59")).days
    assert {DAYS.index(first), DAYS.index(last)} <= days
    assert len(days) == (DAYS.index(last) - DAYS.index(first)) % 7 + 1
