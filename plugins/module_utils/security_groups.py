# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a CVM's security groups do to a connection, decided from the rules alone.

Rules apply from top to bottom and the first that matches decides; with several groups on one instance, the group
listed first goes first; what no rule matches is dropped (tencentcloud.com/document/product/213/12452). A rule that
names an address template, a port template or another security group cannot be decided from the rule itself: the
decision is ``unknown`` when it depends on such a rule, and names it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ACCEPT = "ACCEPT"
DROP = "DROP"
UNKNOWN = "unknown"

PROTOCOLS_WITH_PORTS = ("TCP", "UDP")


@dataclass(frozen=True)
class Rule:
    """One ingress rule; ``index`` is its PolicyIndex in ``group``, the fields are the API's own text."""

    group: str
    index: int
    action: str
    protocol: str
    port: str
    source: str
    description: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.group}[{self.index}] {self.action} {self.protocol} {self.port} from {self.source}"


@dataclass(frozen=True)
class Decision:
    """``action`` is ACCEPT, DROP or unknown; ``rule`` is what decided, None for the default DROP."""

    action: str
    rule: Rule | None

    def __str__(self) -> str:
        return f"{self.action} by {self.rule if self.rule else 'the default (no rule matches)'}"


def rule_from_policy(group: str, policy: Mapping[str, Any]) -> Rule:
    """The rule in one entry of SecurityGroupPolicySet.Ingress of DescribeSecurityGroupPolicies."""
    service = policy.get("ServiceTemplate") or {}
    service_id = service.get("ServiceId") or service.get("ServiceGroupId")
    address = policy.get("AddressTemplate") or {}
    source = (
        policy.get("CidrBlock")
        or policy.get("Ipv6CidrBlock")
        or address.get("AddressId")
        or address.get("AddressGroupId")
        or policy.get("SecurityGroupId")
        or ""
    )
    return Rule(
        group=group,
        index=int(policy.get("PolicyIndex") or 0),
        action=str(policy.get("Action") or "").upper(),
        protocol="template" if service_id else str(policy.get("Protocol") or "").upper(),
        port=str(service_id or policy.get("Port") or ""),
        source=str(source),
        description=str(policy.get("PolicyDescription") or ""),
    )


def rule_from_record(record: Mapping[str, Any]) -> Rule:
    """The rule in *record*, the JSON form that ``target_info`` returns."""
    return Rule(
        group=str(record["group"]),
        index=int(record["index"]),
        action=str(record["action"]),
        protocol=str(record["protocol"]),
        port=str(record["port"]),
        source=str(record["source"]),
        description=str(record.get("description") or ""),
    )


def effective_ingress(groups: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Rule]:
    """The rules of an instance in the order in which they apply.

    *groups* are (group id, its Ingress policies) in the order in which the instance lists its groups; inside a group
    the PolicyIndex orders, whatever order the API answered in.
    """
    rules: list[Rule] = []
    for group, policies in groups:
        rules.extend(sorted((rule_from_policy(group, policy) for policy in policies), key=lambda rule: rule.index))
    return rules


def decide(rules: Sequence[Rule], *, protocol: str, port: int, source_address: str | None) -> Decision:
    """What *rules*, in effective order, do to a connection.

    *source_address* is the address the instance sees; None means that it is not known, so that a rule for part of the
    address space may or may not match. Such a rule and one that names a template are passed over only when the rest
    of the rules decides the same way; otherwise the decision is ``unknown`` and names the first of them.
    """
    undecided: list[Rule] = []
    final = Decision(DROP, None)
    for rule in rules:
        match = _matches(rule, protocol.upper(), port, source_address)
        if match is None:
            undecided.append(rule)
        elif match:
            final = Decision(rule.action, rule)
            break
    # Each undecided rule may be the one that decides, so all of them must agree with what comes after.
    differing = [rule for rule in undecided if rule.action != final.action]
    return Decision(UNKNOWN, differing[0]) if differing else final


def _matches(rule: Rule, protocol: str, port: int, source_address: str | None) -> bool | None:
    """True, False, or None where the rule alone cannot tell. A certain no in one field outweighs doubt in another."""
    answers = (
        _matches_protocol(rule.protocol, protocol),
        _matches_port(rule.port, port) if protocol in PROTOCOLS_WITH_PORTS else True,
        _matches_source(rule.source, source_address),
    )
    if rule.action not in (ACCEPT, DROP):
        return None
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def _matches_protocol(text: str, protocol: str) -> bool | None:
    if text == "template":
        return None
    return text in ("ALL", protocol)


def _matches_port(text: str, port: int) -> bool | None:
    """Reads "ALL", "80", "80,443", "1000-2000" and mixtures; None for a template's id and anything else."""
    if text.upper() == "ALL":
        return True
    matched = False
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else not high)):
            return None
        matched = matched or int(low) <= port <= int(high or low)
    return matched


def _matches_source(text: str, source_address: str | None) -> bool | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if source_address is None:
        # The whole address space matches whoever calls; callers of unknown address are taken to use IPv4,
        # because the agents' addresses are IPv4 unless the plan names one.
        if network.version == 6:
            return False
        return True if network.prefixlen == 0 else None
    address = ipaddress.ip_address(source_address)
    return address.version == network.version and address in network
