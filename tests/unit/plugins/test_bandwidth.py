# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The site's bandwidth: what its transfers use together never exceeds the budget, and none of it lies idle for long."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.bandwidth import (
    LEASE,
    LEAST,
    MARGIN,
    Claim,
    budget_at,
    fair_limits,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.bandwidth_share import BandwidthShare, NoShare, share_for
from fleetlift_agent.bucket import Lease, TokenBucket
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

MIB = 1 << 20
BUDGET = 10 * MIB


class Site:
    """A ledger, a clock, and agents with buckets of their own."""

    def __init__(self, directory, budget=BUDGET, schedule=()):
        self.now = 1_800_000_000.0
        self.path = Path(directory) / "bandwidth.json"
        self.budget = budget
        self.schedule = list(schedule)
        self.agents = {}
        self.shares = {}

    def clock(self):
        return self.now

    def watch(self, name, weight=1, cap=0):
        """A play begins, or another begins, to watch the transfer of *name*."""
        self.shares[name] = BandwidthShare(
            self.path, name, budget=self.budget, schedule=self.schedule, weight=weight, cap=cap, clock=self.clock
        )
        return self.begin(name)

    def begin(self, name):
        running = name in self.agents
        orders = self.shares[name].begin(sends_already=running)
        if orders is None:
            return False
        if not running:
            self.agents[name] = TokenBucket(None, self.clock)
        self.send(name)(orders)
        return True

    def send(self, name):
        def send(orders):
            lease = None
            if "bandwidth_lease" in orders:
                lease = Lease(orders["bandwidth_lease"], orders["bandwidth_after_lease"])
            self.agents[name].set_rate(orders["bandwidth_limit"], lease)

        return send

    def poll(self, name):
        if name in self.agents:
            self.shares[name].keep(self.send(name))
        else:
            self.begin(name)

    def rates(self):
        return {name: bucket.rate for name, bucket in self.agents.items()}

    def settle(self):
        for _round in range(3):
            for name in self.shares:
                self.poll(name)


def test_transfers_share_by_weight(tmp_path):
    site = Site(tmp_path)
    site.watch("web", weight=1)
    assert site.rates() == {"web": BUDGET}
    site.watch("db", weight=3)
    site.settle()
    assert site.rates() == {"web": BUDGET // 4, "db": BUDGET // 4 * 3}


def test_newcomer_waits_until_the_others_were_lowered(tmp_path):
    site = Site(tmp_path)
    site.watch("web")
    assert site.watch("db") is False
    assert site.rates() == {"web": BUDGET}
    site.poll("web")
    assert site.rates() == {"web": BUDGET // 2}
    site.poll("db")
    assert site.rates() == {"web": BUDGET // 2, "db": BUDGET // 2}


def test_what_a_finished_transfer_had_goes_to_the_others(tmp_path):
    site = Site(tmp_path)
    for name in ("web", "db"):
        site.watch(name)
    site.settle()
    site.shares.pop("web").leave()
    del site.agents["web"]
    site.poll("db")
    assert site.rates() == {"db": BUDGET}


def test_transfer_in_sync_keeps_a_small_reserve(tmp_path):
    site = Site(tmp_path)
    for name in ("web", "db"):
        site.watch(name)
    site.settle()
    site.shares.pop("web").rest(site.send("web"))
    site.poll("db")
    rates = site.rates()
    assert rates["web"] == BUDGET // 2 // 20
    assert rates["db"] == BUDGET - rates["web"]
    assert site.watch("web") is True
    site.settle()
    assert site.rates() == {"web": BUDGET // 2, "db": BUDGET // 2}


def test_claim_of_a_dead_controller_expires_after_its_agent_has_fallen_back(tmp_path):
    site = Site(tmp_path)
    for name in ("web", "db"):
        site.watch(name)
    site.settle()
    del site.shares["web"]
    for _second in range(int(LEASE) - 1):
        site.now += 1
        site.poll("db")
    assert site.rates() == {"web": BUDGET // 2, "db": BUDGET // 2}
    site.now += MARGIN + 2
    assert site.rates()["web"] == BUDGET // 2 // 4
    site.poll("db")
    assert site.rates()["db"] == BUDGET - BUDGET // 2 // 4


def test_cap_of_one_goes_to_the_others(tmp_path):
    site = Site(tmp_path)
    site.watch("web", cap=MIB)
    site.watch("db")
    site.settle()
    assert site.rates() == {"web": MIB, "db": BUDGET - MIB}


def test_budget_follows_the_time_of_day(tmp_path):
    day = {"window": "08:00-18:00", "budget": MIB}
    assert budget_at(BUDGET, [day], datetime.fromisoformat("2026-11-25T07:59:00+00:00")) == BUDGET
    assert budget_at(BUDGET, [day], datetime.fromisoformat("2026-11-25T08:00:00+00:00")) == MIB
    site = Site(tmp_path, schedule=[day])
    site.now = datetime.fromisoformat("2026-11-25T07:59:59+00:00").timestamp()
    for name in ("web", "db"):
        site.watch(name)
    site.settle()
    assert sum(site.rates().values()) == BUDGET
    site.now += 1
    site.settle()
    assert sum(site.rates().values()) == MIB


def test_ledger_that_is_damaged_fills_again(tmp_path):
    site = Site(tmp_path)
    site.watch("web")
    site.path.write_text("{")
    site.poll("web")
    assert json.loads(site.path.read_text())["web"]["limit"] == BUDGET


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bandwidth_budget": 100}, "BANDWIDTH_BUDGET_TOO_SMALL"),
        ({"bandwidth_schedule": [{"window": "8-9", "budget": MIB}]}, "BANDWIDTH_SCHEDULE_INVALID"),
        ({"bandwidth_schedule": [{"window": "08:00-09:00"}]}, "BANDWIDTH_SCHEDULE_INVALID"),
        ({"bandwidth_schedule": [{"window": "08:00-09:00", "budget": 0}]}, "BANDWIDTH_BUDGET_TOO_SMALL"),
    ],
)
def test_budget_that_makes_no_sense_is_refused(tmp_path, changes, code):
    options = {
        "bandwidth_budget": MIB,
        "bandwidth_schedule": [],
        "bandwidth_ledger": str(tmp_path / "ledger"),
        "bandwidth_share": 1,
        "migration": "web",
    }
    assert isinstance(share_for(options, 0), BandwidthShare)
    assert isinstance(share_for({**options, "bandwidth_budget": 0}, 0), NoShare)
    with pytest.raises(Refusal) as caught:
        share_for({**options, **changes}, 0)
    assert caught.value.finding.code == code


@given(
    st.dictionaries(
        st.text(max_size=3), st.tuples(st.integers(1, 1000), st.integers(0, 2 * BUDGET), st.booleans()), min_size=1
    )
)
def test_fair_limits_use_the_budget_up_and_no_more(wants):
    claims = {name: Claim(weight, cap, 0, 0, 1.0 if runs else 0.0) for name, (weight, cap, runs) in wants.items()}
    fair = fair_limits(BUDGET, claims, 0.5)
    assert sum(fair.values()) <= BUDGET
    assert all(not claims[name].cap or limit <= claims[name].cap for name, limit in fair.items())
    if any(not claims[name].cap for name in fair):
        assert sum(fair.values()) > BUDGET - len(fair)


class Sharing(RuleBasedStateMachine):
    """Plays come and go, die, and poll in any order, and orders can be late."""

    NAMES = st.sampled_from("abcdef")

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.site = Site(self.directory)

    def teardown(self):
        shutil.rmtree(self.directory)

    @rule(name=NAMES, weight=st.integers(1, 9), cap=st.sampled_from([0, 0, LEAST, MIB]))
    def watch(self, name, weight, cap):
        self.site.watch(name, weight, cap)

    @precondition(lambda self: self.site.shares)
    @rule(data=st.data())
    def poll(self, data):
        self.site.poll(data.draw(st.sampled_from(sorted(self.site.shares))))

    @precondition(lambda self: self.site.shares)
    @rule(data=st.data())
    def die(self, data):
        self.site.shares.pop(data.draw(st.sampled_from(sorted(self.site.shares))))

    @precondition(lambda self: set(self.site.shares) & set(self.site.agents))
    @rule(data=st.data())
    def rest(self, data):
        name = data.draw(st.sampled_from(sorted(set(self.site.shares) & set(self.site.agents))))
        self.site.shares.pop(name).rest(self.site.send(name))

    @precondition(lambda self: set(self.site.shares) & set(self.site.agents))
    @rule(data=st.data())
    def finish(self, data):
        name = data.draw(st.sampled_from(sorted(set(self.site.shares) & set(self.site.agents))))
        del self.site.agents[name]
        self.site.shares.pop(name).leave()

    @rule(seconds=st.sampled_from([1, 30, LEASE - 1, LEASE, LEASE + MARGIN + 1]))
    def wait(self, seconds):
        self.site.now += seconds

    @invariant()
    def what_is_used_is_within_the_budget(self):
        rates = self.site.rates()
        assert None not in rates.values()
        assert sum(rates.values()) <= BUDGET

    @invariant()
    def what_is_watched_is_shared_after_a_few_polls(self):
        if not self.site.shares or self.site.agents.keys() - self.site.shares.keys():
            return
        self.site.now += LEASE + MARGIN + 1
        self.site.settle()
        uncapped = [share for share in self.site.shares.values() if not share._cap]
        if uncapped and len(self.site.agents) == len(self.site.shares):
            assert sum(self.site.rates().values()) > BUDGET - len(self.site.agents)


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSharing = Sharing.TestCase
