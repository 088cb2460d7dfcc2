# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VPC: security groups and their rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from lab.cloud.actions import Call, action, page
from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.filters import Filters
from lab.cloud.parameters import JsonObject
from lab.cloud.policies import port_ranges
from lab.cloud.store import GROUP_ID, Policy, SecurityGroup, Store, now_text

MAXIMUM_POLICIES = 100
LONGEST_NAME, LONGEST_DESCRIPTION = 60, 100  # characters
PROTOCOLS = ("TCP", "UDP", "ICMP", "ICMPV6", "GRE", "ALL")

GROUP_FILTERS: Filters[SecurityGroup] = Filters(
    {
        "project-id": lambda group: ["0"],
        "security-group-id": lambda group: [group.group_id],
        "security-group-name": lambda group: [group.name],
    },
    lambda group: group.tags,
    unknown_name="InvalidParameter.FilterInvalidKey",
    too_many="InvalidParameterValue.LimitExceeded",
)


@action("vpc")
def describe_security_groups(cloud: Cloud, call: Call) -> JsonObject:
    """Security groups by ids or filters."""
    ids, filters = call.get("SecurityGroupIds"), call.get("Filters")
    if ids and filters:
        raise ApiError("InvalidParameter.Coexist", "`SecurityGroupIds` and `Filters` cannot be given together.")
    with cloud.store.reading():
        if ids:
            groups = [_group(cloud.store, name) for name in dict.fromkeys(ids)]
        else:
            groups = list(cloud.store.groups.values())
        selected = GROUP_FILTERS.select(groups, filters or [])
        shown = page(selected, _number(call, "Offset", 0), _number(call, "Limit", 20))
        return {"TotalCount": len(selected), "SecurityGroupSet": [_group_object(item) for item in shown]}


@action("vpc")
def describe_security_group_policies(cloud: Cloud, call: Call) -> JsonObject:
    """The rules of one group, in the order in which they take effect, and their version."""
    with cloud.store.reading():
        group = _group(cloud.store, call.parameters["SecurityGroupId"])
        shown = {
            side: [_policy_object(index, policy) for index, policy in enumerate(policies)]
            for side, policies in (("Ingress", group.ingress), ("Egress", group.egress))
        }
        for entry in call.get("Filters", []):
            shown = {side: _filtered(items, side, entry) for side, items in shown.items()}
        return {"SecurityGroupPolicySet": {"Version": str(group.version), **shown}}


@action("vpc")
def create_security_group(cloud: Cloud, call: Call) -> JsonObject:
    """A group without rules: nothing goes in or out of an instance that has no other."""
    name, description = call.parameters["GroupName"], call.parameters["GroupDescription"]
    if len(name) > LONGEST_NAME or len(description) > LONGEST_DESCRIPTION:
        raise ApiError("InvalidParameterValue.TooLong", "The name or the description of the group is too long.")
    if call.get("ProjectId", "0") != "0":
        raise ApiError("ResourceNotFound", f"The project `{call.get('ProjectId')}` does not exist.")
    with cloud.store.changing():
        group = SecurityGroup(
            cloud.store.new_id("sg"),
            name,
            description,
            egress=[],
            tags={tag.get("Key", ""): tag.get("Value", "") for tag in call.get("Tags", [])},
        )
        cloud.store.add_group(group)
        return {"SecurityGroup": _group_object(group)}


@action("vpc")
def delete_security_group(cloud: Cloud, call: Call) -> JsonObject:
    """Only a group that no instance has and no rule of another names."""
    with cloud.store.changing():
        group = _group(cloud.store, call.parameters["SecurityGroupId"])
        users = [
            item.instance_id for item in cloud.store.instances.values() if group.group_id in item.security_group_ids
        ]
        users += [other.group_id for other in cloud.groups_naming(group.group_id) if other is not group]
        if users:
            raise ApiError("ResourceInUse", f"`{group.group_id}` is used by {', '.join(users)}.")
        del cloud.store.groups[group.group_id]
    return {}


@action("vpc")
def create_security_group_policies(cloud: Cloud, call: Call) -> JsonObject:
    """Insert rules of one direction at one index, or append them."""
    given = call.parameters["SecurityGroupPolicySet"]
    with cloud.store.changing():
        group = _group(cloud.store, call.parameters["SecurityGroupId"])
        _check_version(group, given)
        policies, entries = _side(group, given)
        new = [_new_policy(cloud.store, entry) for entry in entries]
        index = _insertion_index(entries, len(policies))
        for position, policy in enumerate(new):
            if any(_key(policy) == _key(other) for other in [*policies, *new[:position]]):
                raise ApiError("UnsupportedOperation.DuplicatePolicy", f"The rule {_key(policy)} exists already.")
        if len(policies) + len(new) > MAXIMUM_POLICIES:
            raise ApiError("LimitExceeded.SecurityGroupPolicySet", f"More than {MAXIMUM_POLICIES} rules.")
        policies[index:index] = new
        _changed(cloud, group)
    return {}


@action("vpc")
def delete_security_group_policies(cloud: Cloud, call: Call) -> JsonObject:
    """Remove rules of one direction, by PolicyIndex or by content."""
    given = call.parameters["SecurityGroupPolicySet"]
    with cloud.store.changing():
        group = _group(cloud.store, call.parameters["SecurityGroupId"])
        _check_version(group, given)
        policies, entries = _side(group, given)
        by_index = ["PolicyIndex" in entry for entry in entries]
        if any(by_index) and not all(by_index):
            raise ApiError("InvalidParameter.Coexist", "Rules are named either all by index or all by content.")
        if all(by_index):
            doomed = {entry["PolicyIndex"] for entry in entries}
        else:
            doomed = {_position(cloud.store, policies, entry) for entry in entries}
        if not doomed <= set(range(len(policies))):
            raise ApiError("InvalidParameterValue.Range", f"The group has {len(policies)} rules in this direction.")
        policies[:] = [policy for index, policy in enumerate(policies) if index not in doomed]
        _changed(cloud, group)
    return {}


def _group(store: Store, group_id: str) -> SecurityGroup:
    if not GROUP_ID.fullmatch(group_id):
        raise ApiError("InvalidParameterValue.Malformed", f"The security group id `{group_id}` is malformed.")
    if group_id not in store.groups:
        raise ApiError("ResourceNotFound", f"The security group `{group_id}` does not exist.")
    return store.groups[group_id]


def _number(call: Call, name: str, default: int) -> int:
    text = call.get(name, str(default))
    if not text.isdigit():
        raise ApiError("InvalidParameterValue", f"The value `{text}` of `{name}` is not a number.")
    return int(text)


def _check_version(group: SecurityGroup, given: JsonObject) -> None:
    version = given.get("Version")
    if version and version != str(group.version):
        raise ApiError(
            "UnsupportedOperation.VersionMismatch",
            f"The rules of `{group.group_id}` have the version {group.version}, not {version}.",
        )


def _side(group: SecurityGroup, given: JsonObject) -> tuple[list[Policy], list[JsonObject]]:
    ingress, egress = given.get("Ingress"), given.get("Egress")
    if ingress and egress:
        raise ApiError("InvalidParameter.Coexist", "One request changes the rules of one direction.")
    if ingress:
        return group.ingress, ingress
    if egress:
        return group.egress, egress
    raise ApiError("InvalidParameterValue.Empty", "`SecurityGroupPolicySet` has neither `Ingress` nor `Egress`.")


def _insertion_index(entries: list[JsonObject], length: int) -> int:
    indexes = {entry.get("PolicyIndex", length) for entry in entries}
    if len(indexes) > 1:
        raise ApiError("InvalidParameterValue", "All rules of one request have the same `PolicyIndex`.")
    index: int = indexes.pop()
    if not 0 <= index <= length:
        raise ApiError("InvalidParameterValue.Range", f"`PolicyIndex` {index} is not between 0 and {length}.")
    return index


def _new_policy(store: Store, entry: JsonObject) -> Policy:
    for name in ("ServiceTemplate", "AddressTemplate"):
        if entry.get(name):
            raise ApiError("InvalidParameterValue", f"The lab's cloud has no templates (`{name}`).")
    target = entry.get("Action", "").upper()
    if target not in ("ACCEPT", "DROP"):
        raise ApiError("InvalidParameterValue", f"The value `{entry.get('Action')}` of `Action` is not ACCEPT or DROP.")
    protocol = entry.get("Protocol", "ALL").upper()
    if protocol not in PROTOCOLS:
        raise ApiError("InvalidParameterValue", f"The value `{protocol}` of `Protocol` is none of {PROTOCOLS}.")
    cidr, ipv6_cidr, group_id = _peer(store, entry, protocol)
    return Policy(
        action=target,
        protocol=protocol,
        port=_port(entry, protocol),
        cidr=cidr,
        ipv6_cidr=ipv6_cidr,
        group_id=group_id,
        description=entry.get("PolicyDescription", ""),
    )


def _port(entry: JsonObject, protocol: str) -> str:
    port: str = entry.get("Port") or "all"
    if protocol not in ("TCP", "UDP") and port.lower() != "all":
        raise ApiError("InvalidParameterValue", f"Rules for {protocol} have no ports.")
    try:
        port_ranges(port)
    except ValueError as error:
        raise ApiError("InvalidParameterValue.Malformed", f"The value `{port}` of `Port` is malformed.") from error
    return "all" if port.lower() == "all" else port


def _peer(store: Store, entry: JsonObject, protocol: str) -> tuple[str, str, str]:
    cidr, ipv6_cidr, group_id = (entry.get(name) or "" for name in ("CidrBlock", "Ipv6CidrBlock", "SecurityGroupId"))
    given = [value for value in (cidr, ipv6_cidr, group_id) if value]
    if len(given) != 1:
        code = "InvalidParameter.Coexist" if given else "InvalidParameterValue.Empty"
        raise ApiError(code, "A rule has exactly one of `CidrBlock`, `Ipv6CidrBlock` and `SecurityGroupId`.")
    if group_id:
        return "", "", _group(store, group_id).group_id
    if ipv6_cidr:
        if protocol == "ICMP":
            raise ApiError("InvalidParameterValue", "Rules for IPv6 name the protocol ICMPV6.")
        return "", _network(ipv6_cidr, ipaddress.IPv6Network), ""
    return _network(cidr, ipaddress.IPv4Network), "", ""


def _network(text: str, parse: Callable[[str, bool], object]) -> str:
    try:
        network = str(parse(text, False))
    except ValueError as error:
        raise ApiError("InvalidParameterValue.Malformed", f"`{text}` is not an address or a network.") from error
    return network if "/" in text else text


def _key(policy: Policy) -> tuple[str, ...]:
    peer = policy.cidr or policy.ipv6_cidr or policy.group_id
    return (policy.action, policy.protocol, policy.port, peer)


def _position(store: Store, policies: list[Policy], entry: JsonObject) -> int:
    wanted = _key(_new_policy(store, entry))
    for index, policy in enumerate(policies):
        if _key(policy) == wanted:
            return index
    raise ApiError("ResourceNotFound", f"There is no rule {wanted}.")


def _changed(cloud: Cloud, group: SecurityGroup) -> None:
    group.version += 1
    group.updated = now_text()
    cloud.refresh_network(cloud.instances_affected_by(group.group_id))


def _filtered(items: list[JsonObject], side: str, entry: JsonObject) -> list[JsonObject]:
    name, values = entry.get("Name"), entry.get("Values") or []
    wanted = [value.lower() for value in values]
    if name == "direction":
        return items if "all" in wanted or {"Ingress": "inbound", "Egress": "outbound"}[side] in wanted else []
    exact = {"security-group-id": "SecurityGroupId", "protocol-type": "Protocol", "poly": "Action"}
    fuzzy = {"ip": "CidrBlock", "port": "Port", "description": "PolicyDescription"}
    if name in exact:
        return [item for item in items if (name == "poly" and "all" in wanted) or item[exact[name]].lower() in wanted]
    if name in fuzzy:
        return [item for item in items if any(value in item[fuzzy[name]].lower() for value in wanted)]
    raise ApiError("InvalidParameter.FilterInvalidKey", f"The filter `{name}` is not supported.")


def _group_object(group: SecurityGroup) -> JsonObject:
    return {
        "SecurityGroupId": group.group_id,
        "SecurityGroupName": group.name,
        "SecurityGroupDesc": group.description,
        "ProjectId": "0",
        "IsDefault": False,
        "CreatedTime": group.created,
        "UpdateTime": group.updated,
        "TagSet": [{"Key": key, "Value": value} for key, value in group.tags.items()],
    }


def _policy_object(index: int, policy: Policy) -> JsonObject:
    return {
        "PolicyIndex": index,
        "Protocol": policy.protocol,
        "Port": policy.port,
        "CidrBlock": policy.cidr,
        "Ipv6CidrBlock": policy.ipv6_cidr,
        "SecurityGroupId": policy.group_id,
        "Action": policy.action,
        "PolicyDescription": policy.description,
        "ModifyTime": policy.modified,
        "ServiceTemplate": {"ServiceId": "", "ServiceGroupId": ""},
        "AddressTemplate": {"AddressId": "", "AddressGroupId": ""},
    }
