# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The landing's state machine, driven through every state by a scripted instance and a clock that only we move."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.errors import CloudError
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import (
    STEPS,
    Credentials,
    Goal,
    Landing,
    Step,
    address_of,
    password_problem,
    predict,
    wait_for_ssh,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import (
    CHANGING_STATES,
    SETTLED_STATES,
    Operation,
    Target,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal

CREDENTIALS = Credentials("root", "Landing-2026", "SOFT_FIRST")


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class ScriptedInstance:
    """Stands in for ``Instances`` with one instance. A call is admitted in its states, takes ``lag`` looks to show,
    ``work`` looks to pass, and then settles as scripted."""

    state: str = "RUNNING"
    lag: int = 0
    work: int = 3
    fails: tuple[str, ...] = ()
    refuses: dict = field(default_factory=dict)
    loses_answer_of: tuple[str, ...] = ()
    target: Target = field(default_factory=lambda: Target("ins-1", "?"))
    calls: list = field(default_factory=list)
    script: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target = replace(self.target, state=self.state)

    ENDS = {
        "EnterRescueMode": ("ENTER_RESCUE_MODE", "RESCUE_MODE"),
        "ExitRescueMode": ("EXIT_RESCUE_MODE", "STOPPED"),
        "StartInstances": ("STARTING", "RUNNING"),
        "StopInstances": ("STOPPING", "STOPPED"),
    }

    def observe(self, instance_id: str) -> Target:
        if self.script:
            self.target = self.script.pop(0)
        return self.target

    def then(self, *targets: Target) -> None:
        self.script.extend(targets)

    def _call(self, action: str) -> str:
        if self.refuses.get(action):
            raise self.refuses[action].pop(0)
        self.calls.append(action)
        passing, end = self.ENDS[action]
        request = f"request-{len(self.calls)}"
        before = self.target
        operating = replace(before, state=passing, latest_operation=Operation(action, "OPERATING", None, request))
        failed = action in self.fails
        done = Operation(action, "FAILED" if failed else "SUCCESS", "no host" if failed else None, request)
        self.script = [before] * self.lag + [operating] * self.work
        self.script.append(replace(before, state=before.state if failed else end, latest_operation=done))
        if action in self.loses_answer_of:
            raise CloudError("ClientNetworkError", "connection reset", "", action)
        return request

    def enter_rescue_mode(self, instance_id, *, username, password, stop_type) -> str:
        assert (username, password, stop_type) == ("root", "Landing-2026", "SOFT_FIRST")
        return self._call("EnterRescueMode")

    def exit_rescue_mode(self, instance_id) -> str:
        return self._call("ExitRescueMode")

    def start(self, instance_id) -> str:
        return self._call("StartInstances")

    def stop(self, instance_id, *, stop_type) -> str:
        assert stop_type == "SOFT_FIRST"
        return self._call("StopInstances")


def reach(instance, goal, *, timeout=900.0, settle_timeout=300.0, credentials=CREDENTIALS, patient=True):
    clock = Clock()
    waiter = Waiter(timeout, clock=clock, sleep=clock.sleep) if patient else DummyWaiter()
    landing = Landing(instance, "ins-1", waiter, credentials=credentials, settle_timeout=settle_timeout)
    return landing.reach(goal)


def code_of(function, *arguments, **options) -> str:
    with pytest.raises(Refusal) as refused:
        function(*arguments, **options)
    return refused.value.finding.code


@pytest.mark.parametrize("state", ["RUNNING", "STOPPED"])
@pytest.mark.parametrize("lag", [0, 2])
def test_settled_instance_enters_rescue_mode_once_even_when_the_description_lags(state, lag):
    instance = ScriptedInstance(state, lag=lag)
    outcome = reach(instance, Goal.PRESENT)
    assert (outcome.target.state, outcome.previous_state, outcome.changed) == ("RESCUE_MODE", state, True)
    assert instance.calls == ["EnterRescueMode"]


def test_instance_in_rescue_mode_is_left_alone_and_needs_no_password():
    instance = ScriptedInstance("RESCUE_MODE")
    outcome = reach(instance, Goal.PRESENT, credentials=Credentials("root", None, "SOFT"))
    assert (outcome.changed, instance.calls) == (False, [])


def test_entering_begun_by_an_interrupted_run_is_waited_for_not_begun_again():
    instance = ScriptedInstance("ENTER_RESCUE_MODE")
    instance.then(instance.target, instance.target, replace(instance.target, state="RESCUE_MODE"))
    outcome = reach(instance, Goal.PRESENT)
    assert (outcome.changed, instance.calls) == (True, [])


@pytest.mark.parametrize("state", ["PENDING", "STARTING", "STOPPING", "REBOOTING", "EXIT_RESCUE_MODE"])
def test_present_lets_another_change_settle_first(state):
    instance = ScriptedInstance(state)
    instance.then(instance.target, instance.target, replace(instance.target, state="STOPPED"))
    assert reach(instance, Goal.PRESENT).previous_state == state
    assert instance.calls == ["EnterRescueMode"]


def test_operation_that_does_not_end_is_refused_before_anything_is_changed():
    busy = Target("ins-1", "?", latest_operation=Operation("ResizeInstanceDisks", "OPERATING", None, "r"))
    instance = ScriptedInstance("RUNNING", target=busy)
    assert code_of(reach, instance, Goal.PRESENT, settle_timeout=60) == "TARGET_BUSY"
    assert instance.calls == []


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"restrict_state": "EXPIRED"}, "TARGET_EXPIRED"),
        ({"isolated_source": "EXPIRE"}, "TARGET_EXPIRED"),
        ({"restrict_state": "PROTECTIVELY_ISOLATED"}, "TARGET_ISOLATED"),
        ({"isolated_source": "ARREAR"}, "TARGET_ISOLATED"),
        ({"state": "FREEZING"}, "TARGET_ISOLATED"),
        ({"state": "BANNING"}, "TARGET_ISOLATED"),
        ({"state": "ENTER_SERVICE_LIVE_MIGRATE"}, "TARGET_IN_LIVE_MIGRATION"),
        ({"state": "SERVICE_LIVE_MIGRATE"}, "TARGET_IN_LIVE_MIGRATION"),
        ({"state": "EXIT_SERVICE_LIVE_MIGRATE"}, "TARGET_IN_LIVE_MIGRATION"),
        ({"state": "SHUTDOWN"}, "TARGET_STATE"),
        ({"state": "TERMINATING"}, "TARGET_STATE"),
        ({"state": "LAUNCH_FAILED"}, "TARGET_STATE"),
        ({"state": "SOMETHING_NEW"}, "TARGET_STATE_UNKNOWN"),
    ],
)
def test_unusable_instance_is_refused_without_a_call_also_in_check_mode(goal, fields, code):
    instance = ScriptedInstance(fields.get("state", "RUNNING"))
    instance.target = replace(instance.target, **fields)
    assert code_of(reach, instance, goal) == code
    assert code_of(predict, goal, instance.target, CREDENTIALS) == code
    assert instance.calls == []


@pytest.mark.parametrize(
    ("fields", "credentials", "code"),
    [
        ({"architecture": "aarch64"}, CREDENTIALS, "TARGET_ARM"),
        ({"state": "STOPPED", "stop_charging_mode": "STOP_CHARGING"}, CREDENTIALS, "TARGET_STOPPED_NO_CHARGE"),
        ({}, Credentials("root", None, "SOFT"), "LANDING_PASSWORD_MISSING"),
        ({}, Credentials("root", "short1", "SOFT"), "LANDING_PASSWORD_INVALID"),
        ({}, Credentials("root", "onlyletters", "SOFT"), "LANDING_PASSWORD_INVALID"),
    ],
)
def test_what_entering_would_be_refused_for_is_said_before_the_call(fields, credentials, code):
    instance = ScriptedInstance("RUNNING")
    instance.target = replace(instance.target, **fields)
    assert code_of(reach, instance, Goal.PRESENT, credentials=credentials) == code
    assert code_of(predict, Goal.PRESENT, instance.target, credentials) == code
    assert instance.calls == []


def test_absent_leaves_rescue_mode_then_starts():
    instance = ScriptedInstance("RESCUE_MODE", lag=1)
    outcome = reach(instance, Goal.ABSENT)
    assert (outcome.target.state, outcome.changed) == ("RUNNING", True)
    assert instance.calls == ["ExitRescueMode", "StartInstances"]


def test_absent_resumes_after_the_exit_and_only_starts():
    instance = ScriptedInstance("EXIT_RESCUE_MODE")
    instance.then(instance.target, instance.target, replace(instance.target, state="STOPPED"))
    assert reach(instance, Goal.ABSENT).changed
    assert instance.calls == ["StartInstances"]


def test_absent_of_a_running_instance_changes_nothing():
    instance = ScriptedInstance("RUNNING")
    assert not reach(instance, Goal.ABSENT).changed
    assert instance.calls == []


@pytest.mark.parametrize(
    ("state", "goal", "action"),
    [
        ("RUNNING", Goal.PRESENT, "EnterRescueMode"),
        ("RESCUE_MODE", Goal.ABSENT, "ExitRescueMode"),
        ("STOPPED", Goal.ABSENT, "StartInstances"),
    ],
)
def test_failed_change_is_an_error_with_the_clouds_reason_and_is_not_repeated(state, goal, action):
    instance = ScriptedInstance(state, fails=(action,))
    with pytest.raises(Refusal) as refused:
        reach(instance, goal)
    assert refused.value.finding.code == "LANDING_FAILED"
    assert "no host" in str(refused.value)
    assert instance.calls == [action]


def test_failure_of_an_earlier_run_does_not_fail_this_one():
    earlier = Operation("EnterRescueMode", "FAILED", "no host", "request-0")
    instance = ScriptedInstance("RUNNING", lag=2, target=Target("ins-1", "?", latest_operation=earlier))
    assert reach(instance, Goal.PRESENT).target.state == "RESCUE_MODE"


def test_change_whose_answer_was_lost_is_found_by_looking():
    instance = ScriptedInstance("RUNNING", lag=1, loses_answer_of=("EnterRescueMode",))
    assert reach(instance, Goal.PRESENT).changed
    assert instance.calls == ["EnterRescueMode"]


def test_change_that_never_arrived_is_reported_as_the_network_error():
    instance = ScriptedInstance("RUNNING", lag=10_000, loses_answer_of=("EnterRescueMode",))
    assert code_of(reach, instance, Goal.PRESENT) == "CLOUD_UNREACHABLE"


def test_call_that_raced_with_another_operation_is_tried_again_after_it():
    race = CloudError("OperationDenied.InstanceOperationInProgress", "busy", "r", "EnterRescueMode")
    instance = ScriptedInstance("RUNNING", refuses={"EnterRescueMode": [race, race]})
    assert reach(instance, Goal.PRESENT).target.state == "RESCUE_MODE"
    assert instance.calls == ["EnterRescueMode"]


def test_rescue_mode_that_the_cloud_calls_failed_is_not_taken_for_a_landing():
    failed = Operation("EnterRescueMode", "FAILED", "no image", "request-0")
    instance = ScriptedInstance("RESCUE_MODE", target=Target("ins-1", "?", latest_operation=failed))
    with pytest.raises(Refusal) as refused:
        reach(instance, Goal.PRESENT)
    assert refused.value.finding.code == "LANDING_FAILED"
    assert "state=absent" in refused.value.finding.action


def test_timeout_says_what_the_instance_is_doing():
    instance = ScriptedInstance("RUNNING", work=10_000)
    with pytest.raises(Refusal) as refused:
        reach(instance, Goal.PRESENT, timeout=60)
    assert refused.value.finding.code == "LANDING_TIMEOUT"
    assert "ENTER_RESCUE_MODE" in str(refused.value)


def test_without_waiting_each_run_takes_one_step():
    instance = ScriptedInstance("RESCUE_MODE", work=1)
    assert reach(instance, Goal.ABSENT, patient=False).target.state == "EXIT_RESCUE_MODE"
    assert reach(instance, Goal.ABSENT, patient=False).target.state == "STARTING"
    assert reach(instance, Goal.ABSENT, patient=False).target.state == "RUNNING"
    assert instance.calls == ["ExitRescueMode", "StartInstances"]


def test_without_waiting_a_busy_instance_is_refused():
    assert code_of(reach, ScriptedInstance("REBOOTING"), Goal.PRESENT, patient=False) == "TARGET_BUSY"


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("state", SETTLED_STATES + CHANGING_STATES)
def test_check_mode_predicts_what_a_run_reports(goal, state):
    instance = ScriptedInstance(state)
    predicted = predict(goal, instance.target, CREDENTIALS)
    assert instance.calls == []
    ends = {"ENTER_RESCUE_MODE": "RESCUE_MODE", "EXIT_RESCUE_MODE": "STOPPED", "STOPPING": "STOPPED"}
    if state in CHANGING_STATES:
        instance.then(instance.target, replace(instance.target, state=ends.get(state, "RUNNING")))
    assert reach(instance, goal).changed == predicted.changed


def test_every_state_has_a_step_towards_each_goal():
    for goal in Goal:
        assert set(STEPS[goal]) == set(SETTLED_STATES + CHANGING_STATES)
        assert [state for state, step in STEPS[goal].items() if step is Step.DONE] == [goal.value]


def test_password_rule_is_the_clouds():
    assert password_problem("Landing-2026") is None
    assert password_problem("a" * 31 + "1")
    assert password_problem("abcdefgh")
    assert password_problem("abcdefg1") is None


def test_address_prefers_the_public_one_unless_told():
    target = Target("ins-1", "RUNNING", private_addresses=("10.97.0.11",), public_addresses=("203.0.113.11",))
    assert address_of(target, "auto") == "203.0.113.11"
    assert address_of(target, "private") == "10.97.0.11"
    assert address_of(target, "landing.example") == "landing.example"
    assert address_of(replace(target, public_addresses=()), "auto") == "10.97.0.11"
    assert code_of(address_of, replace(target, public_addresses=()), "public") == "TARGET_NO_ADDRESS"


def test_ssh_that_never_answers_is_an_error_with_the_address_and_the_last_reason():
    clock = Clock()
    attempts = []

    def probe(address, port):
        attempts.append((address, port))
        raise ConnectionRefusedError("refused")

    with pytest.raises(Refusal) as refused:
        wait_for_ssh(Waiter(30, clock=clock, sleep=clock.sleep), "ins-1", "203.0.113.11", 22, probe)
    assert refused.value.finding.code == "LANDING_SSH_UNREACHABLE"
    assert "203.0.113.11:22" in str(refused.value)
    assert len(attempts) > 3
