# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buying instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tencentcloud.cvm.v20170312 import models

from .conftest import CloudUnderTest

BASIC: dict[str, Any] = {
    "Placement": {"Zone": "ap-guangzhou-3"},
    "ImageId": "img-debian12",
    "InstanceType": "S5.MEDIUM4",
    "SecurityGroupIds": ["sg-fleetlift"],
    "InstanceName": "bought",
}


def buy(fleet: CloudUnderTest, **extra: Any) -> list[str]:
    ids: list[str] = fleet.call(fleet.cvm, "RunInstances", **{**BASIC, **extra})["InstanceIdSet"]
    return ids


def test_instance_is_pending_then_runs_with_its_disks_and_network(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    (name,) = buy(
        fleet,
        SystemDisk={"DiskSize": 60, "DiskType": "CLOUD_SSD"},
        DataDisks=[{"DiskSize": 10, "DeleteWithInstance": False}, {"DiskSize": 20}],
        InternetAccessible={"InternetMaxBandwidthOut": 5, "PublicIpAssigned": True},
        HostName="bought1",
        LoginSettings={"Password": "Login-pass-42"},
        TagSpecification=[{"ResourceType": "instance", "Tags": [{"Key": "wave", "Value": "1"}]}],
    )
    shown = fleet.instance(name)
    assert (shown["InstanceState"], shown["LatestOperation"]) == ("PENDING", "RunInstances")
    fleet.hypervisor.gate.set()
    shown = fleet.settled("RUNNING", name)
    assert shown["SystemDisk"]["DiskSize"] == 60
    assert [disk["DiskSize"] for disk in shown["DataDisks"]] == [10, 20]
    assert shown["Tags"] == [{"Key": "wave", "Value": "1"}]
    assert (shown["CPU"], shown["Memory"], shown["OsName"]) == (2, 4, "Debian 12 64-bit")
    assert len(shown["PrivateIpAddresses"]) == len(shown["PublicIpAddresses"]) == 1
    spec = next(call[2] for call in fleet.hypervisor.calls if call[:2] == ("create", name))
    assert [(disk.usage, disk.size_gb) for disk in spec.disks] == [
        ("SYSTEM_DISK", 60),
        ("DATA_DISK", 10),
        ("DATA_DISK", 20),
    ]
    assert all(disk.serial == disk.disk_id for disk in spec.disks)
    assert spec.password == "Login-pass-42" and "Login-pass-42" not in repr(spec)
    assert fleet.hypervisor.disks[spec.disks[1].disk_id] == 10
    assert fleet.hypervisor.bandwidth[name] == 5
    assert fleet.hypervisor.policies[name]

    fleet.call(fleet.cvm, "TerminateInstances", InstanceIds=[name])
    fleet.until(lambda: name not in fleet.store.instances, "termination")
    assert [disk.disk_id in fleet.store.disks for disk in spec.disks] == [False, True, False]


def test_sdk_buys_an_instance(fleet: CloudUnderTest) -> None:
    request = models.RunInstancesRequest()
    request.ImageId, request.ClientToken = "img-debian12", "token-1"
    request.Placement = models.Placement()
    request.Placement.Zone = "ap-guangzhou-3"
    (name,) = fleet.cvm.RunInstances(request).InstanceIdSet
    shown = fleet.settled("RUNNING", name)
    assert shown["PublicIpAddresses"] is None
    assert shown["SystemDisk"]["DiskSize"] == 50


def test_client_token_buys_once(fleet: CloudUnderTest) -> None:
    first = buy(fleet, ClientToken="wave-1", InstanceCount=2)
    assert buy(fleet, ClientToken="wave-1", InstanceCount=2) == first
    other = buy(fleet, ClientToken="wave-2")
    assert len(set(first + other)) == 3
    assert len({fleet.instance(name)["PrivateIpAddresses"][0] for name in first + other}) == 3
    for name in first + other:
        fleet.settled("RUNNING", name)
    assert len([call for call in fleet.hypervisor.calls if call[0] == "create"]) == 5


def test_dry_run_checks_and_buys_nothing(fleet: CloudUnderTest) -> None:
    before = len(fleet.hypervisor.calls), set(fleet.store.instances), set(fleet.store.disks)
    run = fleet.cvm, "RunInstances"
    assert fleet.refused(*run, **BASIC, DryRun=True) == "DryRunOperation"
    assert fleet.refused(*run, **{**BASIC, "ImageId": "img-none0000"}, DryRun=True) == "InvalidImageId.NotFound"
    assert (len(fleet.hypervisor.calls), set(fleet.store.instances), set(fleet.store.disks)) == before


def test_prepaid_instance_expires(fleet: CloudUnderTest) -> None:
    (name,) = buy(fleet, InstanceChargeType="PREPAID", InstanceChargePrepaid={"Period": 1})
    shown = fleet.settled("RUNNING", name)
    assert shown["ExpiredTime"] > shown["CreatedTime"]
    assert shown["RenewFlag"] == "NOTIFY_AND_MANUAL_RENEW"


def test_failed_launch_is_reported(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.fail.add("create")
    (name,) = buy(fleet)
    assert "create" in fleet.settled("LAUNCH_FAILED", name, operation_state="FAILED")["LatestOperationErrorMsg"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Placement": None}, "MissingParameter"),
        ({"ImageId": None}, "MissingParameter"),
        ({"Placement": {"ProjectId": 0}}, "MissingParameter"),
        ({"Placement": {"Zone": "ap-shanghai-1"}}, "InvalidZone.MismatchRegion"),
        ({"ImageId": "debian"}, "InvalidImageId.Malformed"),
        ({"InstanceType": "S9.HUGE"}, "InvalidParameterValue.InstanceTypeNotFound"),
        ({"SecurityGroupIds": ["sg-nothere0"]}, "InvalidSecurityGroupId.NotFound"),
        ({"InstanceCount": 0}, "InvalidParameterValue.Range"),
        ({"InstanceCount": 1, "MinCount": 2}, "InvalidParameterValue.InvalidParameterMinCount"),
        ({"InstanceName": "x" * 129}, "InvalidInstanceName.TooLong"),
        ({"ClientToken": "x" * 65}, "InvalidClientToken.TooLong"),
        ({"LoginSettings": {"Password": "weak"}}, "InvalidParameterValue.InvalidPassword"),
        ({"LoginSettings": {"KeyIds": ["skey-1"]}}, "ResourceNotFound.KeyPairNotFound"),
        ({"InstanceChargeType": "SPOTPAID"}, "UnsupportedOperation"),
        ({"InstanceChargeType": "PREPAID"}, "MissingParameter"),
        ({"InstanceChargeType": "PREPAID", "InstanceChargePrepaid": {"Period": 13}}, "InvalidPeriod"),
        ({"HpcClusterId": "hpc-1"}, "UnsupportedOperation"),
        ({"DataDisks": [{"DiskSize": 0}]}, "InvalidParameterValue"),
        ({"DataDisks": [{"DiskSize": 10, "SnapshotId": "snap-1"}]}, "InvalidParameter.SnapshotNotFound"),
        ({"InternetAccessible": {"InternetMaxBandwidthOut": 999}}, "InvalidParameterValue.Range"),
        ({"VirtualPrivateCloud": {"VpcId": "vpc-other000"}}, "InvalidParameterValue.VpcIdNotExist"),
        ({"VirtualPrivateCloud": {"SubnetId": "subnet-other"}}, "InvalidParameterValue.SubnetNotExist"),
        ({"VirtualPrivateCloud": {"PrivateIpAddresses": ["10.97.0.11"]}}, "VpcIpIsUsed"),
        ({"VirtualPrivateCloud": {"PrivateIpAddresses": ["10.99.0.1"]}}, "VpcAddrNotInSubNet"),
        ({"VirtualPrivateCloud": {"PrivateIpAddresses": ["ten"]}}, "InvalidParameterValue.IPAddressMalformed"),
        ({"VirtualPrivateCloud": {"PrivateIpAddresses": ["10.97.0.50", "10.97.0.51"]}}, "InvalidParameterCombination"),
    ],
)
def test_bad_order_is_refused_and_leaves_nothing(fleet: CloudUnderTest, change: dict[str, Any], code: str) -> None:
    before = set(fleet.store.instances), set(fleet.store.disks)
    assert fleet.refused(fleet.cvm, "RunInstances", **{**BASIC, **change}) == code
    assert (set(fleet.store.instances), set(fleet.store.disks)) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sold_out": ("S5.MEDIUM4",)}, "ResourceInsufficient.SpecifiedInstanceType"),
        ({"solvent": False}, "InvalidAccount.InsufficientBalance"),
    ],
)
def test_what_cannot_be_had_or_paid_is_refused_by_a_dry_run_too(
    fleet: CloudUnderTest, change: dict[str, Any], code: str
) -> None:
    fleet.store.site = replace(fleet.store.site, **change)
    for dry in (True, False):
        assert fleet.refused(fleet.cvm, "RunInstances", **BASIC, DryRun=dry) == code
