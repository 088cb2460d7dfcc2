# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fresh image for an instance, through the SDK."""

from __future__ import annotations

from typing import Any

import pytest
from tencentcloud.cvm.v20170312 import models

from .conftest import WEB, CloudUnderTest

IMAGE = "img-debian12"


def test_running_instance_is_stopped_reinstalled_and_started(fleet: CloudUnderTest) -> None:
    request = models.ResetInstanceRequest()
    request.InstanceId, request.ImageId = WEB, IMAGE
    request.LoginSettings = models.LoginSettings()
    request.LoginSettings.Password = "Fresh-pass-42"
    fleet.hypervisor.gate.clear()
    request_id = fleet.cvm.ResetInstance(request).RequestId
    shown = fleet.instance()
    assert (shown["LatestOperation"], shown["LatestOperationState"]) == ("ResetInstance", "OPERATING")
    assert shown["LatestOperationRequestId"] == request_id
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB]) == "OperationDenied.InstanceOperationInProgress"
    assert fleet.refused(fleet.cvm, "ResetInstance", InstanceId=WEB) == "MutexOperation.TaskRunning"
    fleet.hypervisor.gate.set()
    fleet.settled("RUNNING")
    calls = [call for call in fleet.hypervisor.calls if call[0] in ("stop", "reinstall", "start")]
    assert [call[0] for call in calls[-3:]] == ["stop", "reinstall", "start"]
    spec = calls[-2][2]
    assert (spec.image_id, spec.password, spec.disks[0].disk_id) == (IMAGE, "Fresh-pass-42", "disk-websys01")


def test_stopped_instance_runs_afterwards_and_its_disk_may_have_grown(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "StopInstances", InstanceIds=[WEB])
    fleet.settled("STOPPED")
    fleet.call(fleet.cvm, "ResetInstance", InstanceId=WEB, SystemDisk={"DiskSize": 60})
    shown = fleet.settled("RUNNING")
    assert shown["SystemDisk"]["DiskSize"] == 60
    spec = next(call[2] for call in fleet.hypervisor.calls if call[0] == "reinstall")
    assert spec.disks[0].size_gb == 60


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({"InstanceId": "web"}, "InvalidInstanceId.Malformed"),
        ({"InstanceId": "ins-00000000"}, "InvalidInstanceId.NotFound"),
        ({"ImageId": "debian"}, "InvalidImageId.Malformed"),
        ({"ImageId": "img-00000000"}, "InvalidImageId.NotFound"),
        ({"LoginSettings": {"Password": "short"}}, "InvalidParameterValue.InvalidPassword"),
        ({"LoginSettings": {"KeyIds": ["skey-1"]}}, "InvalidParameterValue.KeyPairNotFound"),
        ({"SystemDisk": {"DiskSize": 20}}, "InvalidParameterValue"),
        ({"SystemDisk": {"DiskType": "CLOUD_SSD"}}, "InvalidParameterValue"),
        ({"UserData": "AAAA"}, "UnsupportedOperation"),
    ],
)
def test_bad_order_is_refused(fleet: CloudUnderTest, order: dict[str, Any], code: str) -> None:
    assert fleet.refused(fleet.cvm, "ResetInstance", **{"InstanceId": WEB, **order}) == code
    assert not any(call[0] == "reinstall" for call in fleet.hypervisor.calls)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"InstanceState": "RESCUE_MODE"}, "UnsupportedOperation.InstanceStateRescueMode"),
        ({"InstanceState": "SERVICE_LIVE_MIGRATE"}, "UnsupportedOperation.InstanceStateServiceLiveMigrate"),
        ({"RestrictState": "EXPIRED"}, "UnsupportedOperation.InstanceStateShutdown"),
        (
            {"StopChargingMode": "STOP_CHARGING", "InstanceState": "STOPPED"},
            "UnsupportedOperation.StoppedModeStopCharging",
        ),
    ],
)
def test_wrong_state_is_refused(fleet: CloudUnderTest, fields: dict[str, str], code: str) -> None:
    fleet.cloud.set_instance(WEB, **fields)
    assert fleet.refused(fleet.cvm, "ResetInstance", InstanceId=WEB) == code


def test_instance_that_cannot_be_reinstalled_says_why(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.fail.add("reinstall")
    fleet.call(fleet.cvm, "ResetInstance", InstanceId=WEB)
    assert "failed as asked" in fleet.settled("STOPPED", operation_state="FAILED")["LatestOperationErrorMsg"]
