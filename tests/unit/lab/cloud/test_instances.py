# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances as they are shown, and their power states."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.cvm.v20170312 import models

from lab.cloud.documented import PRODUCTS
from lab.cloud.errors import COMMON_CODES, ApiError
from lab.cloud.instances import OPERATIONS, STATES, check_admissible

from .conftest import DATABASE, WEB, CloudUnderTest


def ids(fleet: CloudUnderTest, **parameters: Any) -> list[str]:
    shown = fleet.call(fleet.cvm, "DescribeInstances", **parameters)["InstanceSet"]
    return [item["InstanceId"] for item in shown]


def names(**filters: list[str]) -> list[dict[str, Any]]:
    return [{"Name": name.replace("_", "-"), "Values": values} for name, values in filters.items()]


def test_sdk_reads_every_field_of_an_instance(fleet: CloudUnderTest) -> None:
    request = models.DescribeInstancesRequest()
    request.InstanceIds = [DATABASE]
    answer = fleet.cvm.DescribeInstances(request)
    assert answer.TotalCount == 1
    item = answer.InstanceSet[0]
    assert (item.InstanceId, item.InstanceName, item.InstanceState) == (DATABASE, "db", "RUNNING")
    assert (item.SystemDisk.DiskId, item.SystemDisk.DiskSize) == ("disk-dbsys001", 50)
    assert [(disk.DiskId, disk.DiskSize) for disk in item.DataDisks] == [("disk-dbdata01", 100)]
    assert item.PrivateIpAddresses == ["10.97.0.12"]
    assert item.PublicIpAddresses == ["203.0.113.12"]
    assert item.InternetAccessible.InternetMaxBandwidthOut == 100
    assert item.SecurityGroupIds == ["sg-fleetlift"]
    assert item.Placement.Zone == "ap-guangzhou-3"
    assert (item.RestrictState, item.InstanceChargeType) == ("NORMAL", "POSTPAID_BY_HOUR")
    assert (item.LatestOperation, item.LatestOperationState) == ("RunInstances", "SUCCESS")
    assert [(tag.Key, tag.Value) for tag in item.Tags] == [("fleet", "demo")]
    assert item.Uuid and item.CreatedTime.endswith("Z") and item.ExpiredTime is None


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (names(instance_id=[WEB]), [WEB]),
        (names(instance_name=["db", "other"]), [DATABASE]),
        (names(zone=["ap-guangzhou-3"]), [WEB, DATABASE]),
        (names(private_ip_address=["10.97.0.11"]), [WEB]),
        (names(public_ip_address=["203.0.113.12"]), [DATABASE]),
        (names(instance_state=["STOPPED"]), []),
        (names(security_group_id=["sg-fleetlift"]), [WEB, DATABASE]),
        ([{"Name": "tag:role", "Values": ["web"]}], [WEB]),
        ([{"Name": "tag-key", "Values": ["fleet"]}], [WEB, DATABASE]),
        (names(zone=["ap-guangzhou-3"], instance_name=["web"]), [WEB]),
    ],
)
def test_filters(fleet: CloudUnderTest, filters: list[dict[str, Any]], found: list[str]) -> None:
    assert ids(fleet, Filters=filters) == found


def test_pages(fleet: CloudUnderTest) -> None:
    first = fleet.call(fleet.cvm, "DescribeInstances", Limit=1)
    assert (first["TotalCount"], len(first["InstanceSet"])) == (2, 1)
    assert ids(fleet, Limit=1, Offset=1) == [DATABASE]
    assert ids(fleet, Offset=2) == []


def test_unknown_id_is_left_out_and_bad_questions_are_refused(fleet: CloudUnderTest) -> None:
    assert ids(fleet, InstanceIds=[WEB, "ins-nothere0"]) == [WEB]
    describe = fleet.cvm, "DescribeInstances"
    assert fleet.refused(*describe, InstanceIds=["web1"]) == "InvalidInstanceId.Malformed"
    assert fleet.refused(*describe, InstanceIds=[f"ins-{n:08}" for n in range(101)]) == (
        "InvalidParameterValue.LimitExceeded"
    )
    assert fleet.refused(*describe, InstanceIds=[WEB], Filters=names(zone=["x"])) == "InvalidParameter"
    assert fleet.refused(*describe, Filters=names(colour=["red"])) == "InvalidFilter"
    assert fleet.refused(*describe, Filters=[{"Name": "zone"}]) == "InvalidFilter"
    assert fleet.refused(*describe, Filters=names(zone=list("abcdef"))) == "InvalidFilterValue.LimitExceeded"
    assert fleet.refused(*describe, Filters=names(zone=["x"]) * 11) == "InvalidFilterValue.LimitExceeded"


def test_status_zones_and_regions(fleet: CloudUnderTest) -> None:
    status = fleet.cvm.DescribeInstancesStatus(models.DescribeInstancesStatusRequest())
    assert {(item.InstanceId, item.InstanceState) for item in status.InstanceStatusSet} == {
        (WEB, "RUNNING"),
        (DATABASE, "RUNNING"),
    }
    zone = fleet.cvm.DescribeZones(models.DescribeZonesRequest()).ZoneSet[0]
    assert (zone.Zone, zone.ZoneState) == ("ap-guangzhou-3", "AVAILABLE")
    region = fleet.cvm.DescribeRegions(models.DescribeRegionsRequest()).RegionSet[0]
    assert region.Region == "ap-guangzhou"


def test_stop_start_and_reboot_pass_through_their_states(fleet: CloudUnderTest) -> None:
    for action, passing, state in (
        ("StopInstances", "STOPPING", "STOPPED"),
        ("StartInstances", "STARTING", "RUNNING"),
        ("RebootInstances", "REBOOTING", "RUNNING"),
    ):
        fleet.hypervisor.gate.clear()
        fleet.call(fleet.cvm, action, InstanceIds=[WEB, DATABASE])
        assert {fleet.instance(name)["InstanceState"] for name in (WEB, DATABASE)} == {passing}
        fleet.hypervisor.gate.set()
        for name in (WEB, DATABASE):
            assert fleet.settled(state, name)["LatestOperation"] == action
    assert [call[0] for call in fleet.hypervisor.calls if call[1] == WEB][-3:] == ["stop", "start", "reboot"]


def test_hard_reboot_cuts_the_power(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "RebootInstances", InstanceIds=[WEB], StopType="HARD")
    fleet.settled("RUNNING")
    assert [call for call in fleet.hypervisor.calls if call[1] == WEB][-2:] == [("stop", WEB, True), ("start", WEB)]


def test_one_refusal_in_a_batch_changes_nothing(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(DATABASE, InstanceState="RESCUE_MODE")
    code = fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB, DATABASE])
    assert code == "UnsupportedOperation.InstanceStateRescueMode"
    assert fleet.instance(WEB)["InstanceState"] == "RUNNING"
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB, "ins-nothere0"]) == "InvalidInstanceId.NotFound"
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[]) == "MissingParameter"
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=["x"]) == "InvalidInstanceId.Malformed"
    assert ("stop", WEB, False) not in fleet.hypervisor.calls


def test_stop_options_are_checked(fleet: CloudUnderTest) -> None:
    stop = fleet.cvm, "StopInstances"
    assert fleet.refused(*stop, InstanceIds=[WEB], StopType="GENTLE") == "InvalidParameterValue"
    assert fleet.refused(*stop, InstanceIds=[WEB], StopType="SOFT", ForceStop=True) == "InvalidParameterCombination"
    assert fleet.refused(*stop, InstanceIds=[WEB], StoppedMode="FREE") == "InvalidParameterValue"
    fleet.cloud.set_instance(WEB, InstanceChargeType="PREPAID")
    assert fleet.refused(*stop, InstanceIds=[WEB], StoppedMode="STOP_CHARGING") == (
        "UnsupportedOperation.StoppedModeStopCharging"
    )


@pytest.mark.parametrize(
    ("state", "action", "code"),
    [
        ("RUNNING", "StartInstances", "UnsupportedOperation.InstanceStateRunning"),
        ("STOPPED", "StopInstances", "UnsupportedOperation.InstanceStateStopped"),
        ("PENDING", "StartInstances", "UnsupportedOperation.InstanceStatePending"),
        ("SHUTDOWN", "StartInstances", "UnsupportedOperation.InstanceStateShutdown"),
        ("ENTER_RESCUE_MODE", "StopInstances", "UnsupportedOperation.InstanceStateEnterRescueMode"),
        ("SERVICE_LIVE_MIGRATE", "StartInstances", "UnsupportedOperation.InstanceStateServiceLiveMigrate"),
        ("ENTER_SERVICE_LIVE_MIGRATE", "StopInstances", "UnsupportedOperation.InstanceStateEnterServiceLiveMigrate"),
        ("EXIT_SERVICE_LIVE_MIGRATE", "TerminateInstances", "UnsupportedOperation.InstanceStateExitServiceLiveMigrate"),
        ("LAUNCH_FAILED", "TerminateInstances", "UnsupportedOperation.InstanceStateLaunchFailed"),
    ],
)
def test_wrong_state_has_its_documented_code(fleet: CloudUnderTest, state: str, action: str, code: str) -> None:
    fleet.cloud.set_instance(WEB, InstanceState=state)
    assert fleet.refused(fleet.cvm, action, InstanceIds=[WEB]) == code


@pytest.mark.parametrize("action", sorted(set(OPERATIONS) - {"RunInstances"}))
def test_every_state_and_restriction_gives_a_documented_answer(fleet: CloudUnderTest, action: str) -> None:
    documented = PRODUCTS["cvm"].actions[action].errors | COMMON_CODES
    instance = fleet.store.instances[WEB]
    for state in STATES:
        for restriction in ("NORMAL", "EXPIRED", "PROTECTIVELY_ISOLATED"):
            for operating in ("SUCCESS", "OPERATING"):
                instance.state, instance.restrict_state = state, restriction
                instance.latest_operation_state = operating
                try:
                    check_admissible(instance, action)
                except ApiError as error:
                    assert error.code in documented, (state, restriction)
                else:
                    assert state in OPERATIONS[action].allowed and operating == "SUCCESS"
                    assert restriction == "NORMAL" or action == "TerminateInstances"


@pytest.mark.parametrize(
    ("restriction", "code"),
    [
        ("EXPIRED", "UnsupportedOperation.InstanceStateShutdown"),
        ("PROTECTIVELY_ISOLATED", "UnsupportedOperation.InstanceStateFreezing"),
    ],
)
def test_isolated_instance_refuses_rescue_and_power(fleet: CloudUnderTest, restriction: str, code: str) -> None:
    fleet.cloud.set_instance(WEB, RestrictState=restriction, ExpiredTime="2026-01-01T00:00:00Z")
    shown = fleet.instance()
    assert (shown["RestrictState"], shown["ExpiredTime"]) == (restriction, "2026-01-01T00:00:00Z")
    assert fleet.refused(fleet.cvm, "EnterRescueMode", InstanceId=WEB, Password="Rescue-pass-42") == code
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB]) == code


def test_operation_on_a_busy_instance_is_refused(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(WEB, LatestOperation="ResetInstance", LatestOperationState="OPERATING")
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB]) == "OperationDenied.InstanceOperationInProgress"
    fleet.cloud.set_instance(WEB, LatestOperation="StopInstances")
    assert fleet.refused(fleet.cvm, "StopInstances", InstanceIds=[WEB]) == "MutexOperation.TaskRunning"


def test_of_many_concurrent_calls_one_wins(fleet: CloudUnderTest) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def stop() -> None:
        client = fleet.client(type(fleet.cvm))
        barrier.wait()
        try:
            fleet.call(client, "StopInstances", InstanceIds=[WEB])
            outcomes.append("OK")
        except TencentCloudSDKException as error:
            outcomes.append(error.get_code())

    fleet.hypervisor.gate.clear()
    threads = [threading.Thread(target=stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fleet.hypervisor.gate.set()
    fleet.settled("STOPPED")
    assert outcomes.count("OK") == 1
    assert outcomes.count("UnsupportedOperation.InstanceStateStopping") == 7
    assert fleet.hypervisor.calls.count(("stop", WEB, False)) == 1


@pytest.mark.parametrize(
    ("action", "broken", "before", "after"),
    [
        ("StartInstances", "start", "STOPPED", "STOPPED"),
        ("StopInstances", "stop", "RUNNING", "RUNNING"),
        ("RebootInstances", "reboot", "RUNNING", "RUNNING"),
        ("TerminateInstances", "destroy", "RUNNING", "RUNNING"),
    ],
)
def test_failed_operation_is_reported(fleet: CloudUnderTest, action: str, broken: str, before: str, after: str) -> None:
    if before == "STOPPED":
        fleet.call(fleet.cvm, "StopInstances", InstanceIds=[WEB])
        fleet.settled("STOPPED")
    fleet.hypervisor.fail.add(broken)
    fleet.call(fleet.cvm, action, InstanceIds=[WEB])
    shown = fleet.settled(after, operation_state="FAILED")
    assert shown["LatestOperation"] == action
    assert f"{broken} of {WEB} failed" in shown["LatestOperationErrorMsg"]


def test_failure_of_rescue_exit_stays_in_rescue(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "EnterRescueMode", InstanceId=WEB, Password="Rescue-pass-42")
    fleet.settled("RESCUE_MODE")
    fleet.hypervisor.fail.add("stop")
    fleet.call(fleet.cvm, "ExitRescueMode", InstanceId=WEB)
    fleet.settled("RESCUE_MODE", operation_state="FAILED")


def test_terminated_instance_is_gone_and_keeps_its_data_disk(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "TerminateInstances", InstanceIds=[DATABASE])
    fleet.until(lambda: ids(fleet) == [WEB], "termination")
    assert fleet.refused(fleet.cvm, "StartInstances", InstanceIds=[DATABASE]) == "InvalidInstanceId.NotFound"
    disks = {item["DiskId"]: item for item in fleet.call(fleet.cbs, "DescribeDisks")["DiskSet"]}
    assert "disk-dbsys001" not in disks
    assert (disks["disk-dbdata01"]["DiskState"], disks["disk-dbdata01"]["LastAttachInsId"]) == ("UNATTACHED", DATABASE)
    assert "disk-dbsys001" not in fleet.hypervisor.disks and "disk-dbdata01" in fleet.hypervisor.disks


def test_prepaid_instance_is_isolated_before_it_is_destroyed(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(WEB, InstanceChargeType="PREPAID")
    fleet.call(fleet.cvm, "TerminateInstances", InstanceIds=[WEB])
    assert fleet.settled("SHUTDOWN")["IsolatedSource"] == "MANMADE"
    assert fleet.refused(fleet.cvm, "StartInstances", InstanceIds=[WEB]) == "UnsupportedOperation.InstanceStateShutdown"
    fleet.call(fleet.cvm, "TerminateInstances", InstanceIds=[WEB])
    fleet.until(lambda: ids(fleet) == [DATABASE], "termination")


def test_protected_instance_is_not_terminated(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(WEB, DisableApiTermination="true")
    assert (
        fleet.refused(fleet.cvm, "TerminateInstances", InstanceIds=[WEB]) == "UnsupportedOperation.InstancesProtected"
    )


def test_guest_that_powers_off_shows_as_stopped(fleet: CloudUnderTest) -> None:
    fleet.cloud.powered_off(WEB)
    assert fleet.instance()["InstanceState"] == "STOPPED"


def test_work_for_one_machine_never_overlaps(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "StopInstances", InstanceIds=[WEB, DATABASE])
    fleet.settled("STOPPED")
    fleet.settled("STOPPED", DATABASE)
    fleet.hypervisor.gate.clear()
    fleet.call(fleet.cbs, "AttachDisks", InstanceId=WEB, DiskIds=["disk-spare001"])
    fleet.call(fleet.cvm, "StartInstances", InstanceIds=[WEB])
    rule = {"Action": "DROP", "Protocol": "TCP", "Port": "443", "CidrBlock": "0.0.0.0/0"}
    fleet.call(
        fleet.vpc,
        "CreateSecurityGroupPolicies",
        SecurityGroupId="sg-fleetlift",
        SecurityGroupPolicySet={"Ingress": [rule]},
    )
    fleet.hypervisor.gate.set()
    fleet.settled("RUNNING")
    assert fleet.hypervisor.overlaps == 0
    done = [call[0] for call in fleet.hypervisor.calls if call[1] == WEB]
    assert done.index("attach_disk") < len(done) - 1 - done[::-1].index("start")


def test_bad_fault_is_refused(fleet: CloudUnderTest) -> None:
    with pytest.raises(ValueError, match="InstanceState: 'ASLEEP' is none of"):
        fleet.cloud.set_instance(WEB, InstanceState="ASLEEP")
    with pytest.raises(ValueError, match="Colour cannot be set"):
        fleet.cloud.set_instance(WEB, Colour="red")
    with pytest.raises(ValueError, match="no security group sg-none"):
        fleet.cloud.set_instance(WEB, SecurityGroupIds="sg-none")
    with pytest.raises(KeyError):
        fleet.cloud.set_instance("ins-nothere0", RestrictState="NORMAL")
    fleet.cloud.set_instance(WEB, InternetMaxBandwidthOut="5")
    assert fleet.hypervisor.bandwidth[WEB] == 5
