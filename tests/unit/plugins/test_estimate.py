# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Estimates: what they are made of, and what is said where nothing is known."""

from __future__ import annotations

import pytest
from ansible_collections.fleetlift.cvm.plugins.action.assess import estimate_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Disk
from ansible_collections.fleetlift.cvm.plugins.module_utils.estimate import (
    BOOT,
    COMPRESSION,
    FREEZE,
    SERVICE_STOP,
    Circumstances,
    comparison,
    estimate,
    fleet,
    happened,
    measured_compression,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.fleet_report import Source, document, lines
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import Assessment, Pair, SourceDisk
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20
DISK = {
    "path": "/dev/sda",
    "size": 40960 * MIB,
    "used_bytes": 10000 * MIB,
    "read_bytes_per_second": 200 * MIB,
    "write_bytes_per_second": 0.0,
}
RATES = st.none() | st.floats(0, 1e9)
DISKS = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.just("/dev/sda"),
            "size": st.integers(1, 1 << 42),
            "used_bytes": st.none() | st.integers(0, 1 << 42),
            "read_bytes_per_second": RATES,
            "write_bytes_per_second": RATES,
        }
    ),
    max_size=3,
)


def test_time_is_what_the_slowest_part_takes_and_the_audit_reads_once_more():
    answer = estimate([DISK], 10.0 * MIB, Circumstances())
    assert answer["bytes_to_send"] == 10000 * MIB
    assert answer["traffic_bytes"] == round(10000 * MIB * COMPRESSION)
    assert answer["seconds"] == round(10000 * COMPRESSION / 10 + 10000 / 200)
    fast = estimate([DISK], 1000.0 * MIB, Circumstances())
    assert fast["seconds"] == 2 * 10000 // 200


def test_the_tightest_limit_counts_and_is_named():
    around = Circumstances(bandwidth_limit=8 * MIB, budget=10 * MIB, share=0.5)
    answer = estimate([DISK], 100.0 * MIB, around)
    assert answer["rate_bytes_per_second"] == 5 * MIB
    assert any("share of the budget" in line for line in answer["assumptions"])


def test_writes_prolong_the_transfer_and_too_many_never_let_it_end():
    quiet = estimate([DISK], 10.0 * MIB, Circumstances())
    busy = estimate([{**DISK, "write_bytes_per_second": 8.0 * MIB}], 10.0 * MIB, Circumstances())
    assert busy["seconds"] > quiet["seconds"]
    assert busy["traffic_bytes"] > quiet["traffic_bytes"]
    endless = estimate([{**DISK, "write_bytes_per_second": 20.0 * MIB}], 10.0 * MIB, Circumstances())
    assert (endless["seconds"], endless["traffic_bytes"]) == (None, None)
    assert any("does not end" in line for line in endless["assumptions"])


def test_downtime_holds_a_full_read_where_changes_are_not_tracked():
    base = round(2 * SERVICE_STOP + FREEZE + BOOT)
    assert estimate([DISK], 10.0 * MIB, Circumstances(services=2))["downtime_seconds"] == base
    untracked = estimate([DISK], 10.0 * MIB, Circumstances(services=2, tracked=False))
    assert untracked["downtime_seconds"] == base + 50


def test_unknown_path_gives_no_times_and_says_so():
    answer = estimate([DISK], None, Circumstances())
    assert (answer["seconds"], answer["rate_bytes_per_second"]) == (None, None)
    assert answer["traffic_bytes"] == round(10000 * MIB * COMPRESSION)
    assert any("not measured" in line for line in answer["assumptions"])


@given(DISKS, RATES, st.floats(0, 1e9), st.floats(0, 1e9), st.booleans(), st.integers(0, 9))
def test_whatever_is_known_gives_figures_that_fit_together(disks, probed, limit, budget, tracked, services):
    around = Circumstances(bandwidth_limit=limit, budget=budget, share=0.5, tracked=tracked, services=services)
    answer = estimate(disks, probed, around)
    assert answer["bytes_to_send"] >= 0
    assert answer["assumptions"]
    if answer["seconds"] is not None:
        assert answer["seconds"] >= 0
        assert answer["traffic_bytes"] >= round(answer["bytes_to_send"] * COMPRESSION) - 1
    whole = fleet([answer, answer], budget)
    assert whole["bytes_to_send"] == 2 * answer["bytes_to_send"]


def assess(**options):
    """The options of the module assess that the estimate reads."""
    disks = [DISK, {**DISK, "path": "/dev/sdb"}] if "bandwidth_shares" in options else [DISK]
    return {
        "source_facts": {"disks": disks, "probe": {"bytes_per_second": 10.0 * MIB}},
        "bandwidth_limit": 0, "bandwidth_budget": 0, "bandwidth_share": 1, "bandwidth_shares": [],
        "change_tracking": True, "services": [], "journal": {},
        **options,
    }  # fmt: skip


def journal(**data):
    return {
        "phases": [
            {"phase": "landing", "status": "ok", "finished": 100.0, "data": {}},
            {"phase": "transfer", "status": "ok", "finished": 160.0, "data": {}},
            {"phase": "handover", "status": "ok", "finished": 170.0, "data": {"totals": data}},
            {"phase": "cutover", "status": "ok", "finished": 190.0, "data": {"downtime_seconds": 14.3}},
        ]
    }


def test_estimate_is_compared_with_what_happened():
    took = happened(journal(bytes_sent=400 * MIB, bytes_wire=100 * MIB))
    expected = {"traffic_bytes": 240 * MIB, "seconds": 50, "downtime_seconds": 100}
    assert comparison("db1", expected, took) == (
        "db1: 100 MiB on the wire, 240 MiB expected; 1:00 until in sync, 0:50 expected; 0:14 of downtime, 1:40 expected"
    )
    assert comparison("db1", {}, took) is None
    assert happened({})["seconds"] is None


def test_compression_that_an_earlier_run_measured_is_used():
    assert measured_compression(journal(bytes_sent=400 * MIB, bytes_wire=100 * MIB)) == 0.25
    assert measured_compression(journal(bytes_sent=1 * MIB, bytes_wire=1)) is None
    answer = estimate_of(assess(journal=journal(bytes_sent=400 * MIB, bytes_wire=100 * MIB)), Assessment((), ()))
    assert answer["traffic_bytes"] == 2500 * MIB


@pytest.mark.parametrize("paired", [(), ("/dev/sda",)])
def test_only_disks_that_are_migrated_count(paired):
    pairs = tuple(Pair("d0", SourceDisk(path, DISK["size"]), Disk("disk-a", "system", 40, 0)) for path in paired)
    arguments = assess(bandwidth_budget=8 * MIB, bandwidth_share=1, bandwidth_shares=[1, 3])
    answer = estimate_of(arguments, Assessment(pairs, ()))
    assert answer["bytes_to_send"] == (10000 if paired else 20000) * MIB
    assert answer["rate_bytes_per_second"] == 2 * MIB


def test_a_source_alone_has_the_whole_budget_and_one_without_facts_no_estimate():
    assert estimate_of(assess(bandwidth_budget=8 * MIB), Assessment((), ()))["rate_bytes_per_second"] == 8 * MIB
    assert estimate_of(assess(source_facts={}), Assessment((), ())) == {}


def test_changes_that_cannot_be_tracked_cost_downtime_though_tracking_is_asked_for():
    finding = Finding("CHANGES_NOT_TRACKED", "warning", "web1", "no tracefs", "nothing")
    tracked, read = (estimate_of(assess(), Assessment((), found)) for found in ((), (finding,)))
    assert read["downtime_seconds"] > tracked["downtime_seconds"]
    assert estimate_of(assess(change_tracking=False), Assessment((), ())) == read


def test_preflight_report_says_what_the_fleet_will_take_and_what_that_assumes():
    one = estimate([DISK], 10.0 * MIB, Circumstances())
    sources = [
        Source(name=name, target="ins-a", wave="1", state="ready", findings=(), estimate=one)
        for name in ("web1", "web2")
    ]
    said = lines(document(sources, 0.0, {}))
    assert (
        "Expected: 19.5 GiB to send, 11.7 GiB over the wire, 10:50 until all are in sync, up to 1:35 of downtime each."
        in said
    )
    assert "  assumed: 60% of what is read goes over the wire (assumed)" in said
    assert sum("over the wire (assumed)" in line for line in said) == 1
