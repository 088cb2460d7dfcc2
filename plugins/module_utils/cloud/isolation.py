# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A security group that lets nobody but the controller in and nothing out, and the way back to the instance's own.

What the instance had before is kept in the group's description: it is there as long as it is needed, also when the
controller that made the group is gone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..findings import Refusal, refuse
from .client import CloudClient
from .instances import Instances
from .target import Target
from .waiter import Waiter

# The API's limits, in characters.
LONGEST_DESCRIPTION = 100
BEFORE = "Fleetlift test launch; before: "
GROUP_ID = re.compile(r"sg-[a-z0-9]+")


@dataclass(frozen=True)
class Group:
    """A security group of ours and the groups that the instance had before."""

    group_id: str
    before: tuple[str, ...]


def group_name(instance_id: str) -> str:
    """The name of an instance's isolation group."""
    return f"fleetlift-isolation-{instance_id}"


def describe(groups: Sequence[str]) -> str:
    """The description that keeps *groups*. Raises ``Refusal`` when they do not fit."""
    text = BEFORE + " ".join(groups)
    if len(text) > LONGEST_DESCRIPTION:
        raise refuse(
            "ISOLATION_TOO_MANY_GROUPS",
            "cloud",
            f"The instance has {len(groups)} security groups, more than a group's description can keep.",
            "Take groups off the instance that it does not need, then run again.",
            security_groups=list(groups),
        )
    return text


def kept(description: str) -> tuple[str, ...]:
    """The groups in a description that :func:`describe` made."""
    return tuple(GROUP_ID.findall(description.removeprefix(BEFORE))) if description.startswith(BEFORE) else ()


def networks(controllers: Sequence[str]) -> list[str]:
    """The controllers as networks. Raises ``Refusal`` for what is none, or for everybody."""
    found = []
    for text in controllers:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            network = None
        if network is None or network.prefixlen == 0:
            raise refuse(
                "ISOLATION_CONTROLLER_INVALID",
                text,
                f"{text!r} is not the address or network of a controller.",
                "Give the address from which the controller reaches the target, such as 198.51.100.7.",
            )
        found.append(str(network))
    return found


def own_address(address: str) -> str:
    """The address with which this machine reaches *address*. Raises ``Refusal`` when it is translated on the way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the kernel only looks up the route.
            probe.connect((address, 9))
            own = str(probe.getsockname()[0])
        except OSError:
            own = ""
    translated = own and ipaddress.ip_address(address).is_global and not ipaddress.ip_address(own).is_global
    if not own or translated:
        raise refuse(
            "ISOLATION_CONTROLLER_UNKNOWN",
            address,
            f"This controller reaches {address} from {own or 'nowhere'}, which the target does not see.",
            "Name the address that it sees with fleetlift_controllers.",
            own_address=own,
        )
    return own


class Isolation:
    """Isolates one stopped instance, and undoes it."""

    def __init__(self, client: CloudClient, instances: Instances, instance_id: str, waiter: Waiter) -> None:
        self._client = client
        self._instances = instances
        self._instance_id = instance_id
        self._waiter = waiter

    def observe(self) -> Target:
        """The instance."""
        return self._instances.observe(self._instance_id)

    def group(self) -> Group | None:
        """The instance's isolation group, if there is one."""
        name = group_name(self._instance_id)
        params = {"Filters": [{"Name": "security-group-name", "Values": [name]}], "Limit": "100"}
        answer = self._client.call("vpc", "DescribeSecurityGroups", params, expect=("SecurityGroupSet",))
        for item in answer["SecurityGroupSet"]:
            if item.get("SecurityGroupName") == name:
                return Group(str(item["SecurityGroupId"]), kept(str(item.get("SecurityGroupDesc") or "")))
        return None

    def is_isolated(self, target: Target, group: Group | None) -> bool:
        """Whether the instance has that group and no other."""
        return group is not None and target.security_groups == (group.group_id,)

    def require_off(self, target: Target) -> None:
        """Raises ``Refusal`` for an instance that runs: it is to change its groups before anybody can reach it."""
        if target.state != "STOPPED":
            raise refuse(
                "ISOLATION_INSTANCE_NOT_STOPPED",
                self._instance_id,
                f"The instance {self._instance_id} is {target.state}; its security groups change while it is off, so"
                " that nobody reaches a copy that runs beside its source.",
                "Stop it with target_landing (state=stopped), then run again.",
                state=target.state,
            )

    def isolate(self, controllers: Sequence[str]) -> Group:
        """Makes the group if need be, with exactly its rules, and gives it to the instance."""
        target, group = self.observe(), self.group()
        if group is not None and self.is_isolated(target, group):
            self._set_rules(group.group_id, controllers)
            return group
        self.require_off(target)
        if group is not None:
            # Left behind by a run that was interrupted; the instance may have got other groups since.
            self._delete(group)
        group = self._make(target.security_groups)
        self._set_rules(group.group_id, controllers)
        self._give([group.group_id])
        return group

    def release(self, groups: Sequence[str]) -> list[str]:
        """Gives the instance back what it had before (*groups*, if given), and deletes the group."""
        target, group = self.observe(), self.group()
        if group is None:
            return list(target.security_groups)
        if group.group_id in target.security_groups:
            self.require_off(target)
            self._give(self.before(group, groups))
        self._delete(group)
        return list(self.observe().security_groups)

    def before(self, group: Group, groups: Sequence[str]) -> list[str]:
        """The groups to give back. Raises ``Refusal`` ISOLATION_GROUPS_UNKNOWN when nobody knows them."""
        known = list(groups) or list(group.before)
        if not known:
            raise refuse(
                "ISOLATION_GROUPS_UNKNOWN",
                self._instance_id,
                f"The description of {group.group_id} does not say which security groups {self._instance_id} had.",
                "Name them with security_groups.",
            )
        return known

    def rules_of(self, group: Group) -> dict[str, list[tuple[str, ...]]]:
        """The rules of the group, by direction, as far as they matter here."""
        policies = self._policies(group.group_id)
        return {side: [_rule(item) for item in policies.get(side) or ()] for side in ("Ingress", "Egress")}

    def _make(self, before: Sequence[str]) -> Group:
        params = {"GroupName": group_name(self._instance_id), "GroupDescription": describe(before)}
        answer = self._client.call("vpc", "CreateSecurityGroup", params, expect=("SecurityGroup",), idempotent=False)
        return Group(str(answer["SecurityGroup"]["SecurityGroupId"]), tuple(before))

    def _delete(self, group: Group) -> None:
        self._client.call("vpc", "DeleteSecurityGroup", {"SecurityGroupId": group.group_id})

    def _set_rules(self, group_id: str, controllers: Sequence[str]) -> None:
        wanted = wanted_rules(controllers)
        policies = self._policies(group_id)
        for side in ("Ingress", "Egress"):
            there = policies.get(side) or []
            if [_rule(item) for item in there] == wanted[side]:
                continue
            if there:
                doomed = {side: [{"PolicyIndex": item["PolicyIndex"]} for item in there]}
                self._change_rules("DeleteSecurityGroupPolicies", group_id, doomed)
            if wanted[side]:
                new = [_policy(rule) for rule in wanted[side]]
                self._change_rules("CreateSecurityGroupPolicies", group_id, {side: new})

    def _change_rules(self, action: str, group_id: str, policies: Mapping[str, Any]) -> None:
        params = {"SecurityGroupId": group_id, "SecurityGroupPolicySet": dict(policies)}
        self._client.call("vpc", action, params, idempotent=False)

    def _policies(self, group_id: str) -> dict[str, Any]:
        params = {"SecurityGroupId": group_id}
        answer = self._client.call("vpc", "DescribeSecurityGroupPolicies", params, expect=("SecurityGroupPolicySet",))
        return dict(answer["SecurityGroupPolicySet"])

    def _give(self, groups: Sequence[str]) -> None:
        self._instances.set_security_groups(self._instance_id, groups)
        while True:
            target = self.observe()
            done = set(target.security_groups) == set(groups) and target.latest_operation.state != "OPERATING"
            if done and target.latest_operation.state != "FAILED":
                return
            if not self._waiter.pause():
                raise self._not_given(target, groups)

    def _not_given(self, target: Target, groups: Sequence[str]) -> Refusal:
        operation = target.latest_operation
        return refuse(
            "ISOLATION_TIMEOUT",
            self._instance_id,
            f"After {self._waiter.waited:.0f} s the instance {self._instance_id} has the security groups"
            f" {', '.join(target.security_groups)}, not {', '.join(groups)}; {operation.name} is {operation.state}.",
            "Run again, or change them in the console.",
            security_groups=list(target.security_groups),
        )


def wanted_rules(controllers: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """The rules of an isolation group: everything from the controllers, nothing from elsewhere, nothing out."""
    return {"Ingress": [("ACCEPT", "ALL", network) for network in networks(controllers)], "Egress": []}


def _rule(policy: Mapping[str, Any]) -> tuple[str, ...]:
    peer = str(policy.get("CidrBlock") or policy.get("Ipv6CidrBlock") or policy.get("SecurityGroupId") or "")
    if peer:
        try:
            peer = str(ipaddress.ip_network(peer, strict=False))
        except ValueError:
            pass  # another group: such a rule is none of ours
    port = str(policy.get("Port") or "all").lower()
    protocol = str(policy.get("Protocol") or "").upper()
    return (str(policy.get("Action") or "").upper(), protocol if port == "all" else f"{protocol} {port}", peer)


def _policy(rule: tuple[str, ...]) -> dict[str, str]:
    action, protocol, network = rule
    family = "Ipv6CidrBlock" if ":" in network else "CidrBlock"
    return {"Action": action, "Protocol": protocol, family: network, "PolicyDescription": "the controller"}
