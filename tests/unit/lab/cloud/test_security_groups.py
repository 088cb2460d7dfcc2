# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Security groups, and what reaches the machines."""

from __future__ import annotations

from typing import Any

import pytest
from tencentcloud.vpc.v20170312 import models

from lab.cloud.hypervisor import PacketRule
from lab.cloud.policies import effective_ingress, port_ranges
from lab.cloud.store import Policy, SecurityGroup

from .conftest import DATABASE, WEB, CloudUnderTest

GROUP = "sg-fleetlift"
SSH = PacketRule("tcp", ((22, 22),), "10.98.0.0/24", "ACCEPT")
HTTPS = {"Action": "ACCEPT", "Protocol": "TCP", "Port": "443", "CidrBlock": "0.0.0.0/0"}


def shown(fleet: CloudUnderTest, group: str = GROUP) -> dict[str, Any]:
    answer: dict[str, Any] = fleet.call(fleet.vpc, "DescribeSecurityGroupPolicies", SecurityGroupId=group)
    policies: dict[str, Any] = answer["SecurityGroupPolicySet"]
    return policies


def create(fleet: CloudUnderTest, *rules: dict[str, Any], side: str = "Ingress", **extra: str) -> None:
    fleet.call(
        fleet.vpc,
        "CreateSecurityGroupPolicies",
        SecurityGroupId=GROUP,
        SecurityGroupPolicySet={side: list(rules), **extra},
    )


def refused(fleet: CloudUnderTest, action: str, policies: dict[str, Any], group: str = GROUP) -> str:
    return fleet.refused(fleet.vpc, action, SecurityGroupId=group, SecurityGroupPolicySet=policies)


def in_force(fleet: CloudUnderTest, *rules: PacketRule, instance: str = WEB) -> None:
    fleet.until(lambda: fleet.hypervisor.policies[instance] == rules, f"rules of {instance}")


def test_sdk_reads_groups_and_rules(fleet: CloudUnderTest) -> None:
    groups = fleet.vpc.DescribeSecurityGroups(models.DescribeSecurityGroupsRequest())
    assert [(item.SecurityGroupId, item.SecurityGroupName) for item in groups.SecurityGroupSet] == [
        (GROUP, "fleetlift")
    ]
    request = models.DescribeSecurityGroupPoliciesRequest()
    request.SecurityGroupId = GROUP
    policies = fleet.vpc.DescribeSecurityGroupPolicies(request).SecurityGroupPolicySet
    rule = policies.Ingress[0]
    assert (policies.Version, rule.PolicyIndex, rule.Protocol, rule.Port) == ("0", 0, "TCP", "22")
    assert (rule.CidrBlock, rule.Action) == ("10.98.0.0/24", "ACCEPT")
    assert policies.Egress[0].Action == "ACCEPT"
    assert fleet.hypervisor.policies[WEB] == (SSH,)


def test_rules_are_inserted_appended_and_removed_in_order(fleet: CloudUnderTest) -> None:
    https = PacketRule("tcp", ((443, 443),), "0.0.0.0/0", "ACCEPT")
    drop = PacketRule("all", (), "203.0.113.7", "DROP")
    create(fleet, HTTPS)
    in_force(fleet, SSH, https)
    create(fleet, {"Action": "DROP", "CidrBlock": "203.0.113.7", "PolicyIndex": 0})
    in_force(fleet, drop, SSH, https)
    in_force(fleet, drop, SSH, https, instance=DATABASE)
    policies = shown(fleet)
    assert policies["Version"] == "2"
    assert [(rule["PolicyIndex"], rule["Port"]) for rule in policies["Ingress"]] == [(0, "all"), (1, "22"), (2, "443")]

    delete = {"SecurityGroupId": GROUP, "SecurityGroupPolicySet": {"Ingress": [HTTPS]}}
    fleet.call(fleet.vpc, "DeleteSecurityGroupPolicies", **delete)
    in_force(fleet, drop, SSH)
    delete["SecurityGroupPolicySet"] = {"Ingress": [{"PolicyIndex": 0}], "Version": "3"}
    fleet.call(fleet.vpc, "DeleteSecurityGroupPolicies", **delete)
    in_force(fleet, SSH)
    assert shown(fleet)["Version"] == "4"


def test_stale_version_is_refused(fleet: CloudUnderTest) -> None:
    create(fleet, HTTPS, Version="0")
    other = {**HTTPS, "Port": "80"}
    mismatch = "UnsupportedOperation.VersionMismatch"
    assert refused(fleet, "CreateSecurityGroupPolicies", {"Version": "0", "Ingress": [other]}) == mismatch
    by_index = {"Version": "0", "Ingress": [{"PolicyIndex": 0}]}
    assert refused(fleet, "DeleteSecurityGroupPolicies", by_index) == mismatch
    assert len(shown(fleet)["Ingress"]) == 2


def test_egress_is_kept_apart(fleet: CloudUnderTest) -> None:
    create(fleet, {**HTTPS, "Action": "DROP"}, side="Egress")
    policies = shown(fleet)
    assert [rule["Action"] for rule in policies["Egress"]] == ["ACCEPT", "DROP"]
    assert len(policies["Ingress"]) == 1


@pytest.mark.parametrize(
    ("policies", "code"),
    [
        ({}, "InvalidParameterValue.Empty"),
        ({"Ingress": [HTTPS], "Egress": [HTTPS]}, "InvalidParameter.Coexist"),
        ({"Ingress": [{**HTTPS, "Action": "MAYBE"}]}, "InvalidParameterValue"),
        ({"Ingress": [{**HTTPS, "Protocol": "SCTP"}]}, "InvalidParameterValue"),
        ({"Ingress": [{**HTTPS, "Protocol": "ICMP"}]}, "InvalidParameterValue"),
        ({"Ingress": [{**HTTPS, "Port": "99999"}]}, "InvalidParameterValue.Malformed"),
        ({"Ingress": [{**HTTPS, "CidrBlock": "everywhere"}]}, "InvalidParameterValue.Malformed"),
        ({"Ingress": [{**HTTPS, "Ipv6CidrBlock": "::/0"}]}, "InvalidParameter.Coexist"),
        ({"Ingress": [{"Action": "DROP"}]}, "InvalidParameterValue.Empty"),
        ({"Ingress": [{"Action": "DROP", "SecurityGroupId": "sg-nothere0"}]}, "ResourceNotFound"),
        ({"Ingress": [{"Action": "DROP", "AddressTemplate": {"AddressId": "ipm-1"}}]}, "InvalidParameterValue"),
        ({"Ingress": [HTTPS, HTTPS]}, "UnsupportedOperation.DuplicatePolicy"),
        ({"Ingress": [{**HTTPS, "PolicyIndex": 7}]}, "InvalidParameterValue.Range"),
        ({"Ingress": [{**HTTPS, "PolicyIndex": 0}, {**HTTPS, "Port": "80"}]}, "InvalidParameterValue"),
        ({"Ingress": [{**HTTPS, "Port": str(n)} for n in range(1, 101)]}, "LimitExceeded.SecurityGroupPolicySet"),
    ],
)
def test_bad_rules_are_refused(fleet: CloudUnderTest, policies: dict[str, Any], code: str) -> None:
    assert refused(fleet, "CreateSecurityGroupPolicies", policies) == code
    assert len(shown(fleet)["Ingress"]) == 1


def test_bad_removals_and_questions_are_refused(fleet: CloudUnderTest) -> None:
    delete = "DeleteSecurityGroupPolicies"
    assert refused(fleet, delete, {"Ingress": [HTTPS]}) == "ResourceNotFound"
    assert refused(fleet, delete, {"Ingress": [{"PolicyIndex": 5}]}) == "InvalidParameterValue.Range"
    assert refused(fleet, delete, {"Ingress": [{"PolicyIndex": 0}, HTTPS]}) == "InvalidParameter.Coexist"
    assert refused(fleet, delete, {"Ingress": [HTTPS]}, group="sg-nothere0") == "ResourceNotFound"
    assert refused(fleet, delete, {"Ingress": [HTTPS]}, group="fleetlift") == "InvalidParameterValue.Malformed"
    groups = fleet.vpc, "DescribeSecurityGroups"
    assert fleet.refused(*groups, SecurityGroupIds=["sg-nothere0"]) == "ResourceNotFound"
    assert fleet.refused(*groups, Limit="all") == "InvalidParameterValue"
    named = [{"Name": "security-group-name", "Values": ["fleetlift"]}]
    assert fleet.refused(*groups, SecurityGroupIds=[GROUP], Filters=named) == "InvalidParameter.Coexist"
    assert fleet.call(*groups, Filters=named)["TotalCount"] == 1


@pytest.mark.parametrize(
    ("name", "value", "ports"),
    [
        ("port", "44", ["443"]),
        ("poly", "DROP", ["443"]),
        ("direction", "OUTBOUND", []),
        ("protocol-type", "TCP", ["22", "443"]),
        ("ip", "10.98", ["22"]),
    ],
)
def test_rules_are_filtered(fleet: CloudUnderTest, name: str, value: str, ports: list[str]) -> None:
    create(fleet, {**HTTPS, "Action": "DROP"})
    answer = fleet.call(
        fleet.vpc,
        "DescribeSecurityGroupPolicies",
        SecurityGroupId=GROUP,
        Filters=[{"Name": name, "Values": [value]}],
    )
    assert [rule["Port"] for rule in answer["SecurityGroupPolicySet"]["Ingress"]] == ports


def test_first_group_has_priority_and_group_sources_become_addresses() -> None:
    first = SecurityGroup("sg-first", "first", ingress=[Policy("DROP", "TCP", "443", "0.0.0.0/0")])
    second = SecurityGroup(
        "sg-second",
        "second",
        ingress=[Policy("ACCEPT", "TCP", "80,440-450", "0.0.0.0/0"), Policy("ACCEPT", group_id="sg-first")],
    )
    members = {"sg-first": ["10.97.0.5", "10.97.0.6"]}
    drop = PacketRule("tcp", ((443, 443),), "0.0.0.0/0", "DROP")
    accept = PacketRule("tcp", ((80, 80), (440, 450)), "0.0.0.0/0", "ACCEPT")
    peers = [PacketRule("all", (), f"10.97.0.{host}/32", "ACCEPT") for host in (5, 6)]
    assert effective_ingress([first, second], members) == (drop, accept, *peers)
    assert effective_ingress([second, first], members) == (accept, *peers, drop)


def test_order_of_groups_on_the_instance_decides(fleet: CloudUnderTest) -> None:
    fleet.store.add_group(SecurityGroup("sg-closing0", "closing", ingress=[Policy("DROP", cidr="0.0.0.0/0")]))
    drop = PacketRule("all", (), "0.0.0.0/0", "DROP")
    fleet.cloud.set_instance(WEB, SecurityGroupIds="sg-closing0,sg-fleetlift")
    assert fleet.hypervisor.policies[WEB] == (drop, SSH)
    fleet.cloud.set_instance(WEB, SecurityGroupIds=["sg-fleetlift", "sg-closing0"])
    assert fleet.hypervisor.policies[WEB] == (SSH, drop)
    assert fleet.hypervisor.policies[DATABASE] == (SSH,)


def test_new_member_of_a_source_group_is_let_in(fleet: CloudUnderTest) -> None:
    create(fleet, {"Action": "ACCEPT", "SecurityGroupId": GROUP})
    bought = fleet.call(
        fleet.cvm,
        "RunInstances",
        Placement={"Zone": "ap-guangzhou-3"},
        ImageId="img-debian12",
        SecurityGroupIds=[GROUP],
    )["InstanceIdSet"][0]
    address = fleet.settled("RUNNING", bought)["PrivateIpAddresses"][0]
    fleet.until(
        lambda: f"{address}/32" in [rule.peer for rule in fleet.hypervisor.policies[WEB]], "rule for the new member"
    )


@pytest.mark.parametrize("port", ["0", "80-", "90-80", "x", "", "1-70000"])
def test_bad_ports(port: str) -> None:
    with pytest.raises(ValueError):
        port_ranges(port)


def made(fleet: CloudUnderTest, name: str = "isolation") -> str:
    answer = fleet.call(fleet.vpc, "CreateSecurityGroup", GroupName=name, GroupDescription="for a test")
    group: str = answer["SecurityGroup"]["SecurityGroupId"]
    return group


def given(fleet: CloudUnderTest, *groups: str) -> None:
    fleet.call(fleet.cvm, "ModifyInstancesAttribute", InstanceIds=[WEB], SecurityGroups=list(groups))
    fleet.settled("RUNNING")


def test_new_group_lets_nothing_in_or_out(fleet: CloudUnderTest) -> None:
    request = models.CreateSecurityGroupRequest()
    request.GroupName, request.GroupDescription = "isolation", "for a test"
    group = fleet.vpc.CreateSecurityGroup(request).SecurityGroup
    assert (group.SecurityGroupName, group.SecurityGroupDesc) == ("isolation", "for a test")
    assert (shown(fleet, group.SecurityGroupId)["Ingress"], shown(fleet, group.SecurityGroupId)["Egress"]) == ([], [])
    given(fleet, group.SecurityGroupId)
    assert (fleet.hypervisor.policies[WEB], fleet.hypervisor.egress[WEB]) == ((), ())
    assert fleet.instance()["SecurityGroupIds"] == [group.SecurityGroupId]
    assert fleet.instance()["LatestOperation"] == "ModifyInstancesAttribute"


def test_egress_rules_are_in_force(fleet: CloudUnderTest) -> None:
    everything = PacketRule("all", (), "0.0.0.0/0", "ACCEPT")
    assert fleet.hypervisor.egress[WEB] == (everything,)
    create(fleet, {"Action": "DROP", "Protocol": "ALL", "CidrBlock": "10.0.0.0/8", "PolicyIndex": 0}, side="Egress")
    drop = PacketRule("all", (), "10.0.0.0/8", "DROP")
    fleet.until(lambda: fleet.hypervisor.egress[WEB] == (drop, everything), "the drop")


def test_group_is_deleted_only_when_nobody_uses_it(fleet: CloudUnderTest) -> None:
    group = made(fleet)
    given(fleet, GROUP, group)
    assert fleet.refused(fleet.vpc, "DeleteSecurityGroup", SecurityGroupId=group) == "ResourceInUse"
    given(fleet, GROUP)
    create(fleet, {"Action": "ACCEPT", "Protocol": "ALL", "SecurityGroupId": group})
    assert fleet.refused(fleet.vpc, "DeleteSecurityGroup", SecurityGroupId=group) == "ResourceInUse"
    policies = {"Ingress": [{"PolicyIndex": len(shown(fleet)["Ingress"]) - 1}]}
    fleet.call(fleet.vpc, "DeleteSecurityGroupPolicies", SecurityGroupId=GROUP, SecurityGroupPolicySet=policies)
    fleet.call(fleet.vpc, "DeleteSecurityGroup", SecurityGroupId=group)
    assert fleet.refused(fleet.vpc, "DeleteSecurityGroup", SecurityGroupId=group) == "ResourceNotFound"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"SecurityGroups": ["sg-missing1"]}, "InvalidSecurityGroupId.NotFound"),
        ({"SecurityGroups": []}, "InvalidParameterValue"),
        ({"SecurityGroups": [GROUP], "InstanceName": "both"}, "InvalidParameterValue"),
        ({}, "InvalidParameterValue"),
        ({"HostName": "other"}, "InvalidParameterValue"),
        ({"InstanceName": "x" * 61}, "InvalidInstanceName.TooLong"),
        ({"InstanceName": "x", "InstanceIds": ["ins-00000000"]}, "InvalidInstanceId.NotFound"),
    ],
)
def test_bad_change_of_an_instance_is_refused(fleet: CloudUnderTest, change: dict[str, Any], code: str) -> None:
    assert fleet.refused(fleet.cvm, "ModifyInstancesAttribute", **{"InstanceIds": [WEB], **change}) == code


def test_groups_of_an_instance_cannot_change_in_rescue_mode(fleet: CloudUnderTest) -> None:
    fleet.cloud.set_instance(WEB, InstanceState="RESCUE_MODE")
    change = {"InstanceIds": [WEB], "SecurityGroups": [GROUP]}
    code = "UnsupportedOperation.InstanceStateRescueMode"
    assert fleet.refused(fleet.cvm, "ModifyInstancesAttribute", **change) == code


def test_name_and_protection_of_an_instance_change(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "ModifyInstancesAttribute", InstanceIds=[WEB], InstanceName="other")
    assert fleet.settled("RUNNING")["InstanceName"] == "other"
    fleet.call(fleet.cvm, "ModifyInstancesAttribute", InstanceIds=[WEB], DisableApiTermination=True)
    assert fleet.settled("RUNNING")["DisableApiTermination"] is True
