# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waves: who is cut over when, whatever the order in which the sources ask."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.fleetlift.cvm.plugins.action.wave import Turn
from ansible_collections.fleetlift.cvm.plugins.module_utils import waves
from ansible_collections.fleetlift.cvm.plugins.module_utils.waves import Rules
from hypothesis import given, settings
from hypothesis import strategies as st

NIGHT = datetime(2026, 11, 25, 23, 0, tzinfo=timezone.utc)
FLEET = {"web1": 1, "web2": 1, "app1": 2, "app2": 2, "db1": 3}
FREE = Rules(concurrency=0, failure_budget=0, approval=False, timeout=3600)


def look(ledger, source, rules=FREE, window="", now=NIGHT):
    return waves.verdict(ledger, source, FLEET[source], rules, window, now)


def with_states(**states):
    ledger = waves.opened(FLEET)
    for name, state in states.items():
        ledger = waves.moved(ledger, name, FLEET[name], state, NIGHT.timestamp())
    return ledger


def test_first_wave_begins_at_once_and_the_others_wait():
    ledger = waves.opened(FLEET)
    assert [look(ledger, name).kind for name in FLEET] == ["go", "go", "wait", "wait", "wait"]
    ledger = with_states(web1="ok", web2="running")
    assert look(ledger, "app1").kind == "wait"
    ledger = with_states(web1="ok", web2="ok")
    assert [look(ledger, name).kind for name in ("app1", "db1")] == ["go", "wait"]


def test_no_more_of_a_wave_run_at_once_than_may():
    rules = Rules(concurrency=1, failure_budget=0, approval=False, timeout=3600)
    assert look(with_states(web1="running"), "web2", rules).kind == "wait"
    assert look(with_states(web1="ok"), "web2", rules).kind == "go"


def test_spent_failure_budget_holds_what_has_not_begun_and_says_who_failed():
    held = look(with_states(web1="failed"), "web2")
    assert (held.kind, held.finding.code) == ("held", "FAILURE_BUDGET_SPENT")
    assert "web1" in held.finding.cause
    one = Rules(concurrency=0, failure_budget=1, approval=False, timeout=3600)
    assert look(with_states(web1="failed", web2="ok"), "app1", one).kind == "go"
    assert look(with_states(web1="failed", web2="failed"), "app1", one).kind == "held"


def test_cutover_whose_end_nobody_noted_counts_as_failed_in_the_end():
    ledger = with_states(web1="running", web2="ok")
    assert look(ledger, "app1").kind == "wait"
    assert look(ledger, "app1", now=NIGHT + timedelta(seconds=3601)).finding.code == "FAILURE_BUDGET_SPENT"


def test_closed_window_holds_the_source_and_says_when_it_opens():
    held = look(waves.opened(FLEET), "web1", window="08:00-18:00 Europe/Berlin")
    assert held.finding.code == "WINDOW_CLOSED"
    assert "Thu 2026-11-26 08:00 CET" in held.finding.action
    assert look(waves.opened(FLEET), "web1", window="22:00-05:00").kind == "go"


def test_source_that_waits_until_its_window_has_closed_is_held():
    rules = Rules(concurrency=1, failure_budget=0, approval=False, timeout=36000)
    window = "22:00-05:00"
    assert look(with_states(web1="running"), "web2", rules, window).kind == "wait"
    later = NIGHT + timedelta(hours=7)
    assert look(with_states(web1="ok"), "web2", rules, window, later).finding.code == "WINDOW_CLOSED"


def test_source_that_is_not_of_this_run_is_not_waited_for():
    assert waves.verdict(waves.opened({"db1": 3}), "db1", 3, FREE, "", NIGHT).kind == "go"


# The ledger in a file, with the plays as threads


class Play:
    """The sources of one run, each in a thread of its own, as workers are."""

    def __init__(self, path, fleet, answers=(), **rules):
        self.path = path
        self.fleet = fleet
        self.rules = {"concurrency": 0, "failure_budget": 0, "approval": False, "timeout": 3600, **rules}
        self.answers = list(answers)
        self.asked = []
        self.running = {}
        self.begun = []
        self.held = {}
        self.most = 0
        self.lock = threading.Lock()

    def turn(self, name, **changes):
        arguments = {
            **self.rules,
            "ledger": str(self.path),
            "source": name,
            "wave": self.fleet.get(name, 1),
            "waves": self.fleet,
            "result": "ok",
            "window": None,
            "poll_interval": 0.001,
            **changes,
        }
        return Turn(arguments, tell=lambda line: None, ask=self.ask, now=lambda: NIGHT)

    def ask(self, text):
        with self.lock:
            self.asked.append(text)
            return self.answers.pop(0) if self.answers else None

    def cut_over(self, name, result):
        verdict = self.turn(name).begin()
        if verdict.kind == "held":
            with self.lock:
                self.held[name] = verdict.finding.code
            return
        with self.lock:
            self.begun.append(name)
            wave = self.fleet[name]
            self.running[wave] = self.running.get(wave, 0) + 1
            self.most = max(self.most, self.running[wave])
            assert all(not count for other, count in self.running.items() if other != wave)
        with self.lock:
            self.running[wave] -= 1
        self.turn(name, result=result).end()

    def run(self, failing=()):
        self.turn("web1").open()
        threads = [
            threading.Thread(target=self.cut_over, args=(name, "failed" if name in failing else "ok"))
            for name in sorted(self.fleet, reverse=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return self


def test_waves_run_one_after_the_other_whoever_asks_first(tmp_path):
    play = Play(tmp_path / "waves.json", FLEET, concurrency=1).run()
    assert [FLEET[name] for name in play.begun] == [1, 1, 2, 2, 3]
    assert (play.most, play.held) == (1, {})


def test_failure_within_the_budget_lets_the_others_go_on(tmp_path):
    play = Play(tmp_path / "waves.json", FLEET, failure_budget=1).run(failing={"web1"})
    assert sorted(play.begun) == sorted(FLEET)


def test_failure_beyond_the_budget_stops_the_waves_that_follow(tmp_path):
    play = Play(tmp_path / "waves.json", FLEET, failure_budget=0).run(failing={"web1", "web2"})
    assert set(play.begun) <= {"web1", "web2"}
    assert set(play.held) >= {"app1", "app2", "db1"}
    assert set(play.held.values()) == {"FAILURE_BUDGET_SPENT"}


def test_each_wave_but_the_first_is_asked_about_once(tmp_path):
    play = Play(tmp_path / "waves.json", FLEET, answers=["yes", "y"], approval=True).run()
    assert len(play.asked) == 2
    assert "2 of 2 sources were cut over" in play.asked[0]
    assert "Begin wave 2 (app1, app2)?" in play.asked[0]
    assert sorted(play.begun) == sorted(FLEET)


@pytest.mark.parametrize("answers", [["no", "no"], ["", ""], []])
def test_wave_that_nobody_approves_is_held(tmp_path, answers):
    play = Play(tmp_path / "waves.json", FLEET, answers=answers, approval=True).run()
    assert sorted(play.begun) == ["web1", "web2"]
    assert set(play.held.values()) == {"WAVE_NOT_APPROVED"}


def test_new_run_forgets_what_an_interrupted_one_has_left(tmp_path):
    path = tmp_path / "waves.json"
    interrupted = Play(path, FLEET)
    interrupted.turn("web1").open()
    assert interrupted.turn("web1").begin().kind == "go"
    rest = {"web1": 1, "app1": 2}
    assert sorted(Play(path, rest).run().begun) == ["app1", "web1"]
    assert set(json.loads(path.read_text())["sources"]) == set(rest)


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 3), min_size=1),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_no_run_breaks_its_rules_or_hangs(tmp_path_factory, fleet, concurrency, budget, failing):
    path = tmp_path_factory.mktemp("waves") / "waves.json"
    play = Play(path, fleet, concurrency=concurrency, failure_budget=budget).run(failing)
    assert sorted([*play.begun, *play.held]) == sorted(fleet)
    assert not concurrency or play.most <= concurrency
    order = [fleet[name] for name in play.begun]
    assert order == sorted(order)
    # Nothing new is begun by one who could see that too many had failed.
    failures = len(failing & set(play.begun))
    assert play.held if failures > budget and len(play.begun) < len(fleet) else True
    assert not play.held or failures > budget
