# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Security groups as the packet sees them: one list of rules, the first match wins, no match drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lab.cloud.hypervisor import PacketRule
from lab.cloud.store import Policy, SecurityGroup


def effective_ingress(groups: Sequence[SecurityGroup], members: Mapping[str, Sequence[str]]) -> tuple[PacketRule, ...]:
    """The rules for what an instance gets: its groups in the instance's order, each from top to bottom.

    members: group id -> private addresses of the instances in it, for rules whose peer is a group.
    """
    return tuple(rule for group in groups for policy in group.ingress for rule in _rules(policy, members))


def effective_egress(groups: Sequence[SecurityGroup], members: Mapping[str, Sequence[str]]) -> tuple[PacketRule, ...]:
    """The same for what an instance sends."""
    return tuple(rule for group in groups for policy in group.egress for rule in _rules(policy, members))


def port_ranges(port: str) -> tuple[tuple[int, int], ...]:
    """ "all" -> (); "80,443" -> ((80, 80), (443, 443)); "8000-8010" -> ((8000, 8010),). ValueError if malformed."""
    if port.lower() == "all":
        return ()
    ranges = []
    for part in port.split(","):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 < low <= high <= 65535:
            raise ValueError(f"{part!r} is not a port or a range of ports")
        ranges.append((low, high))
    return tuple(ranges)


def _rules(policy: Policy, members: Mapping[str, Sequence[str]]) -> list[PacketRule]:
    if policy.group_id:
        peers = [f"{address}/32" for address in members.get(policy.group_id, ())]
    else:
        peers = [policy.cidr or policy.ipv6_cidr]
    protocol = policy.protocol.lower()
    ports = port_ranges(policy.port) if protocol in ("tcp", "udp") else ()
    action: Literal["ACCEPT", "DROP"] = "ACCEPT" if policy.action == "ACCEPT" else "DROP"
    return [PacketRule(protocol, ports, peer, action) for peer in peers]
