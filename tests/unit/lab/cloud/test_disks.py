# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cloud disks."""

from __future__ import annotations

from typing import Any

import pytest
from tencentcloud.cbs.v20170312 import models

from .conftest import DATABASE, WEB, CloudUnderTest

ORDER: dict[str, Any] = {
    "Placement": {"Zone": "ap-guangzhou-3"},
    "DiskChargeType": "POSTPAID_BY_HOUR",
    "DiskType": "CLOUD_BSSD",
    "DiskSize": 10,
}
SPARE = "disk-spare001"


def disk(fleet: CloudUnderTest, disk_id: str = SPARE) -> dict[str, Any]:
    shown: dict[str, Any] = fleet.call(fleet.cbs, "DescribeDisks", DiskIds=[disk_id])["DiskSet"][0]
    return shown


def in_state(fleet: CloudUnderTest, state: str, disk_id: str = SPARE) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        shown = disk(fleet, disk_id)
        return shown if shown["DiskState"] == state else None

    found: dict[str, Any] = fleet.until(look, f"{disk_id} {state}")
    return found


def test_sdk_reads_every_field_of_a_disk(fleet: CloudUnderTest) -> None:
    request = models.DescribeDisksRequest()
    request.DiskIds = ["disk-dbdata01"]
    answer = fleet.cbs.DescribeDisks(request)
    item = answer.DiskSet[0]
    assert (answer.TotalCount, item.DiskId, item.DiskUsage, item.DiskSize) == (1, "disk-dbdata01", "DATA_DISK", 100)
    assert (item.DiskState, item.Attached, item.InstanceId, item.InstanceIdList) == ("ATTACHED", True, DATABASE, [])
    assert (item.Portable, item.Shareable, item.Placement.Zone) == (True, False, "ap-guangzhou-3")
    system = disk(fleet, "disk-dbsys001")
    assert (system["DiskUsage"], system["Portable"], system["DeleteWithInstance"]) == ("SYSTEM_DISK", False, True)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("instance-id", DATABASE, ["disk-dbsys001", "disk-dbdata01"]),
        ("disk-id", SPARE, [SPARE]),
        ("disk-usage", "SYSTEM_DISK", ["disk-websys01", "disk-dbsys001"]),
        ("disk-state", "UNATTACHED", [SPARE]),
        ("portable", "FALSE", ["disk-websys01", "disk-dbsys001"]),
        ("instance-name", "web", ["disk-websys01"]),
        ("instance-ip-address", "10.97.0.12", ["disk-dbsys001", "disk-dbdata01"]),
        ("zone", "ap-shanghai-1", []),
    ],
)
def test_filters(fleet: CloudUnderTest, name: str, value: str, found: list[str]) -> None:
    shown = fleet.call(fleet.cbs, "DescribeDisks", Filters=[{"Name": name, "Values": [value]}])
    assert sorted(item["DiskId"] for item in shown["DiskSet"]) == sorted(found)
    assert shown["TotalCount"] == len(found)


def test_bad_questions_are_refused(fleet: CloudUnderTest) -> None:
    describe = fleet.cbs, "DescribeDisks"
    colour = [{"Name": "colour", "Values": ["red"]}]
    assert fleet.refused(*describe, Filters=colour) == "InvalidFilter"
    assert fleet.refused(*describe, Filters=colour, DiskIds=[SPARE]) == "InvalidParameterValue"
    assert fleet.refused(*describe, DiskIds=["sda"]) == "InvalidParameterValue"
    assert fleet.refused(*describe, OrderField="SIZE") == "InvalidParameterValue"
    assert fleet.refused(*describe, Limit=101) == "InvalidParameterValue"


def test_client_token_makes_disks_once(fleet: CloudUnderTest) -> None:
    request = models.CreateDisksRequest()
    request.from_json_string(
        '{"Placement": {"Zone": "ap-guangzhou-3"}, "DiskChargeType": "POSTPAID_BY_HOUR", '
        '"DiskType": "CLOUD_BSSD", "DiskSize": 10, "DiskCount": 2, "ClientToken": "t1"}'
    )
    first = fleet.cbs.CreateDisks(request).DiskIdSet
    assert fleet.cbs.CreateDisks(request).DiskIdSet == first
    assert len(first) == 2
    assert {fleet.hypervisor.disks[name] for name in first} == {10}
    assert disk(fleet, first[0])["DiskState"] == "UNATTACHED"


def test_disks_that_cannot_be_made_leave_nothing(fleet: CloudUnderTest) -> None:
    before = set(fleet.store.disks)
    fleet.hypervisor.fail.add("create_disk")
    assert fleet.refused(fleet.cbs, "CreateDisks", **ORDER, ClientToken="t") == "ResourceInsufficient"
    assert set(fleet.store.disks) == before
    fleet.hypervisor.fail.clear()
    assert len(fleet.call(fleet.cbs, "CreateDisks", **ORDER, ClientToken="t")["DiskIdSet"]) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Placement": {}}, "MissingParameter"),
        ({"Placement": {"Zone": "ap-shanghai-1"}}, "InvalidParameterValue"),
        ({"DiskSize": None}, "MissingParameter"),
        ({"DiskSize": 0}, "InvalidParameterValue"),
        ({"DiskType": "FLOPPY"}, "InvalidParameterValue"),
        ({"DiskChargeType": "PREPAID"}, "InvalidParameter.DiskConfigNotSupported"),
        ({"SnapshotId": "snap-1"}, "InvalidParameter.DiskConfigNotSupported"),
        ({"DiskCount": 21}, "InvalidParameterValue.LimitExceeded"),
        ({"ClientToken": "x" * 65}, "InvalidParameter.InvalidClientToken"),
        ({"DiskName": "x" * 61}, "InvalidParameterValue.LimitExceeded"),
    ],
)
def test_bad_order_is_refused(fleet: CloudUnderTest, change: dict[str, Any], code: str) -> None:
    assert fleet.refused(fleet.cbs, "CreateDisks", **{**ORDER, **change}) == code


def test_disk_is_attached_and_detached(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    fleet.call(fleet.cbs, "AttachDisks", InstanceId=WEB, DiskIds=[SPARE])
    shown = disk(fleet)
    assert (shown["DiskState"], shown["Attached"], shown["InstanceId"]) == ("ATTACHING", False, WEB)
    assert fleet.refused(fleet.cbs, "DetachDisks", DiskIds=[SPARE]) == "ResourceBusy"
    fleet.hypervisor.gate.set()
    assert in_state(fleet, "ATTACHED")["Attached"]
    assert [item["DiskId"] for item in fleet.instance()["DataDisks"]] == [SPARE]
    assert ("attach_disk", WEB, SPARE, SPARE, 20) in fleet.hypervisor.calls
    assert fleet.refused(fleet.cbs, "AttachDisks", InstanceId=DATABASE, DiskIds=[SPARE]) == (
        "ResourceUnavailable.Attached"
    )
    assert fleet.refused(fleet.cbs, "DetachDisks", InstanceId=DATABASE, DiskIds=[SPARE]) == "InvalidParameterValue"
    fleet.call(fleet.cbs, "DetachDisks", InstanceId=WEB, DiskIds=[SPARE])
    shown = in_state(fleet, "UNATTACHED")
    assert (shown["InstanceId"], shown["LastAttachInsId"]) == ("", WEB)
    assert fleet.instance()["DataDisks"] == []


def test_disks_are_attached_in_the_order_of_the_request(fleet: CloudUnderTest) -> None:
    made = fleet.call(fleet.cbs, "CreateDisks", **ORDER, DiskCount=8)["DiskIdSet"]
    fleet.call(fleet.cbs, "AttachDisks", InstanceId=WEB, DiskIds=made)
    for name in made:
        in_state(fleet, "ATTACHED", name)
    assert [item["DiskId"] for item in fleet.instance()["DataDisks"]] == made


@pytest.mark.parametrize(("action", "settled"), [("attach", "UNATTACHED"), ("detach", "ATTACHED")])
def test_failure_settles_with_an_explanation(fleet: CloudUnderTest, action: str, settled: str) -> None:
    if action == "detach":
        fleet.call(fleet.cbs, "AttachDisks", InstanceId=WEB, DiskIds=[SPARE])
        in_state(fleet, "ATTACHED")
    fleet.hypervisor.fail.add(f"{action}_disk")
    parameters = {"DiskIds": [SPARE], **({"InstanceId": WEB} if action == "attach" else {})}
    fleet.call(fleet.cbs, f"{action.capitalize()}Disks", **parameters)
    fleet.until(lambda: f"{action}_disk of" in disk(fleet)["ErrorPrompt"], "failure")
    assert disk(fleet)["DiskState"] == settled
    assert len(fleet.instance()["DataDisks"]) == (action == "detach")


def test_refusals(fleet: CloudUnderTest) -> None:
    attach, detach = (fleet.cbs, "AttachDisks"), (fleet.cbs, "DetachDisks")
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=["disk-nothere0"]) == "InvalidDiskId.NotFound"
    assert fleet.refused(*attach, InstanceId="ins-nothere0", DiskIds=[SPARE]) == "InvalidInstanceId.NotFound"
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=[]) == "MissingParameter"
    many = [f"disk-{number:08}" for number in range(11)]
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=many) == "InvalidParameterValue.LimitExceeded"
    assert fleet.refused(*detach, DiskIds=["disk-websys01"]) == "InvalidDisk.NotPortable"
    assert fleet.refused(*detach, DiskIds=[SPARE]) == "InvalidDisk.NotSupported"
    fleet.cloud.set_disk(SPARE, DiskState="DUMPING")
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=[SPARE]) == "ResourceBusy"
    fleet.cloud.set_disk(SPARE, DiskState="UNATTACHED")
    fleet.store.disks[SPARE].zone = "ap-guangzhou-4"
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=[SPARE]) == "ResourceUnavailable.ZoneNotMatch"
    fleet.cloud.set_instance(WEB, InstanceState="RESCUE_MODE")
    assert fleet.refused(*attach, InstanceId=WEB, DiskIds=[SPARE]) == "InvalidInstance.NotSupported"
