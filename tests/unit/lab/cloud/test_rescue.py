# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way into and out of rescue mode, through the SDK."""

from __future__ import annotations

import pytest
from tencentcloud.cvm.v20170312 import models

from .conftest import WEB, CloudUnderTest

PASSWORD = "Rescue-pass-42"


def enter(fleet: CloudUnderTest, **extra: str) -> str:
    request = models.EnterRescueModeRequest()
    request.InstanceId, request.Password = WEB, PASSWORD
    for name, value in extra.items():
        setattr(request, name, value)
    request_id: str = fleet.cvm.EnterRescueMode(request).RequestId
    return request_id


def test_instance_goes_to_rescue_stays_stopped_on_exit_and_starts_again(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    request_id = enter(fleet, StopType="HARD")
    shown = fleet.instance()
    assert shown["InstanceState"] == "ENTER_RESCUE_MODE"
    assert shown["LatestOperation"] == "EnterRescueMode"
    assert shown["LatestOperationState"] == "OPERATING"
    assert shown["LatestOperationRequestId"] == request_id
    fleet.hypervisor.gate.set()
    fleet.settled("RESCUE_MODE")
    assert fleet.hypervisor.rescued[WEB] == ("root", PASSWORD)
    assert ("stop", WEB, True) in fleet.hypervisor.calls

    request = models.ExitRescueModeRequest()
    request.InstanceId = WEB
    fleet.cvm.ExitRescueMode(request)
    fleet.settled("STOPPED")
    assert not fleet.hypervisor.is_running(WEB)

    request = models.StartInstancesRequest()
    request.InstanceIds = [WEB]
    fleet.cvm.StartInstances(request)
    fleet.settled("RUNNING")
    assert fleet.hypervisor.is_running(WEB)


def test_stopped_instance_enters_rescue_without_being_stopped(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "StopInstances", InstanceIds=[WEB])
    fleet.settled("STOPPED")
    before = len(fleet.hypervisor.calls)
    enter(fleet)
    fleet.settled("RESCUE_MODE")
    assert [call[0] for call in fleet.hypervisor.calls[before:]] == ["rescue"]


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("StartInstances", "UnsupportedOperation.InstanceStateRescueMode"),
        ("StopInstances", "UnsupportedOperation.InstanceStateRescueMode"),
        ("RebootInstances", "UnsupportedOperation"),
        ("TerminateInstances", "UnsupportedOperation"),
    ],
)
def test_instance_in_rescue_refuses_power_operations(fleet: CloudUnderTest, action: str, code: str) -> None:
    enter(fleet)
    fleet.settled("RESCUE_MODE")
    assert fleet.refused(fleet.cvm, action, InstanceIds=[WEB]) == code
    assert fleet.instance()["InstanceState"] == "RESCUE_MODE"


def test_rescue_can_be_entered_once(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    enter(fleet)
    again = {"InstanceId": WEB, "Password": PASSWORD}
    assert fleet.refused(fleet.cvm, "EnterRescueMode", **again) == "UnsupportedOperation.InstanceStateEnterRescueMode"
    fleet.hypervisor.gate.set()
    fleet.settled("RESCUE_MODE")
    assert fleet.refused(fleet.cvm, "EnterRescueMode", **again) == "UnsupportedOperation.InstanceStateRescueMode"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("RUNNING", "UnsupportedOperation.InstanceStateRunning"),
        ("STOPPED", "UnsupportedOperation.InstanceStateStopped"),
        ("STARTING", "OperationDenied.InstanceOperationInProgress"),
        ("SERVICE_LIVE_MIGRATE", "UnsupportedOperation.InstanceStateServiceLiveMigrate"),
    ],
)
def test_exit_needs_rescue(fleet: CloudUnderTest, state: str, code: str) -> None:
    fleet.cloud.set_instance(WEB, InstanceState=state)
    assert fleet.refused(fleet.cvm, "ExitRescueMode", InstanceId=WEB) == code


@pytest.mark.parametrize("password", ["short1A", "onlyletters", "12345678901", "a1" * 16, "with space 1", "/leading1"])
def test_weak_password_is_refused(fleet: CloudUnderTest, password: str) -> None:
    code = fleet.refused(fleet.cvm, "EnterRescueMode", InstanceId=WEB, Password=password)
    assert code == "InvalidParameterValue.InvalidPassword"
    assert fleet.instance()["InstanceState"] == "RUNNING"


def test_arm_instance_is_refused(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(WEB, InstanceType="SR1.MEDIUM4")
    code = fleet.refused(fleet.cvm, "EnterRescueMode", InstanceId=WEB, Password=PASSWORD)
    assert code == "UnsupportedOperation.ArmArchitecture"


def test_instance_stopped_without_charging_is_refused(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "StopInstances", InstanceIds=[WEB], StoppedMode="STOP_CHARGING")
    assert fleet.settled("STOPPED")["StopChargingMode"] == "STOP_CHARGING"
    code = fleet.refused(fleet.cvm, "EnterRescueMode", InstanceId=WEB, Password=PASSWORD)
    assert code == "UnsupportedOperation.StoppedModeStopCharging"


@pytest.mark.parametrize(("broken", "state"), [("stop", "RUNNING"), ("rescue", "STOPPED")])
def test_failed_rescue_is_reported_and_settles(fleet: CloudUnderTest, broken: str, state: str) -> None:
    fleet.hypervisor.fail.add(broken)
    enter(fleet)
    shown = fleet.settled(state, operation_state="FAILED")
    assert broken in shown["LatestOperationErrorMsg"]
    fleet.hypervisor.fail.clear()
    enter(fleet)
    assert fleet.settled("RESCUE_MODE")["LatestOperationErrorMsg"] is None


def test_guest_that_does_not_shut_down_is_cut_off_when_asked(fleet: CloudUnderTest) -> None:
    original = fleet.hypervisor.stop

    def stubborn(instance_id: str, hard: bool) -> None:
        if not hard:
            fleet.hypervisor.fail.add("stop")
        try:
            original(instance_id, hard)
        finally:
            fleet.hypervisor.fail.discard("stop")

    fleet.hypervisor.stop = stubborn  # type: ignore[method-assign]
    enter(fleet, StopType="SOFT")
    fleet.settled("RUNNING", operation_state="FAILED")
    enter(fleet, StopType="SOFT_FIRST")
    fleet.settled("RESCUE_MODE")


def test_password_is_nowhere_but_in_the_machine(fleet: CloudUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    fleet.hypervisor.fail.add("rescue")
    enter(fleet)
    fleet.settled("STOPPED", operation_state="FAILED")
    fleet.hypervisor.fail.clear()
    enter(fleet)
    fleet.settled("RESCUE_MODE")
    files = [path for path in fleet.log_path.parent.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert PASSWORD not in path.read_text(encoding="utf-8"), path
    assert not any(PASSWORD in record.getMessage() for record in caplog.records if record.name.startswith("lab."))
    logged = [entry for entry in fleet.log_entries() if entry["action"] == "EnterRescueMode"]
    assert logged[0]["parameters"] == {"InstanceId": WEB, "Password": "***"}
