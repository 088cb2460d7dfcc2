# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much is written to a disk is what the kernel counts between two looks."""

from __future__ import annotations

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.disk_activity import (
    WriteRate,
    parse_diskstats,
    parse_uptime,
    write_rate,
)
from hypothesis import given
from hypothesis import strategies as st

# /proc/diskstats of a 6.1 kernel (20 columns) and of a 3.10 one (14 columns).
NEW = """\
 254       0 vda 13208 3713 1141938 5390 41544 32931 2123856 50862 0 47292 57230 0 0 0 0 4313 977
 254       1 vda1 13002 3713 1133178 5342 41544 32931 2123856 50862 0 47252 56205 0 0 0 0 0 0
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
"""
OLD = "   8       0 sda 105 20 1144 310 9 4 104 12 0 200 322\n   8       0 broken\n"


def test_written_bytes_are_read_from_new_and_old_kernels() -> None:
    assert parse_diskstats(NEW) == {"254:0": 2123856 * 512, "254:1": 2123856 * 512, "7:0": 0}
    assert parse_diskstats(OLD) == {"8:0": 104 * 512}


def test_rate_is_what_was_written_between_the_looks() -> None:
    assert write_rate("8:0", {"8:0": 1000}, {"8:0": 9000}, 2.0, 90.0) == WriteRate(4000.0, 100.0)


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [({}, {"8:0": 5}, 1.0), ({"8:0": 5}, {}, 1.0), ({"8:0": 9}, {"8:0": 5}, 1.0), ({"8:0": 1}, {"8:0": 5}, 0.0)],
    ids=["new disk", "removed disk", "counter that started over", "no time"],
)
def test_what_is_no_measurement_is_not_known(before: dict[str, int], after: dict[str, int], seconds: float) -> None:
    assert write_rate("8:0", before, after, seconds, None).sampled is None


@given(st.text(max_size=300))
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_diskstats(text)
    parse_uptime(text)


def test_uptime_is_the_first_figure() -> None:
    assert parse_uptime("355.21 702.11\n") == 355.21
    assert parse_uptime("") is None
