# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The decision over security-group rules, against a model that tries every reading of what is not known."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.security_groups import (
    ACCEPT,
    DROP,
    UNKNOWN,
    Rule,
    decide,
    effective_ingress,
    rule_from_policy,
    rule_from_record,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCES = ("0.0.0.0/0", "10.0.0.0/8", "10.96.0.0/24", "10.96.0.11", "203.0.113.0/24", "::/0", "2001:db8::/32")
OPAQUE = ("ipm-1a2b3c4d", "sg-other", "")
PORTS = ("ALL", "all", "443", "80,443", "400-500", "22,400-500,8080", "1000-2000")
ADDRESSES = ("10.96.0.11", "10.1.2.3", "203.0.113.9", "192.0.2.1", "2001:db8::1")


def rule(action=ACCEPT, protocol="TCP", port="443", source="0.0.0.0/0", index=0, group="sg-1") -> Rule:
    return Rule(group=group, index=index, action=action, protocol=protocol, port=port, source=source)


rules = st.lists(
    st.builds(
        rule,
        action=st.sampled_from((ACCEPT, DROP)),
        protocol=st.sampled_from(("TCP", "UDP", "ICMP", "ALL", "template")),
        port=st.sampled_from(PORTS),
        source=st.sampled_from(SOURCES + OPAQUE),
    ),
    max_size=6,
)


def reading(item: Rule, protocol: str, port: int, address: str | None) -> bool | None:
    """Whether one rule matches, written out plainly."""
    if item.protocol not in ("ALL", "template", protocol):
        return False
    ports: set[int] = set()
    for part in item.port.split(","):
        if part.upper() == "ALL":
            ports.update(range(65536))
        else:
            low, _, high = part.partition("-")
            ports.update(range(int(low), int(high or low) + 1))
    if protocol in ("TCP", "UDP") and port not in ports:
        return False
    if item.source not in OPAQUE and address is not None:
        network = ipaddress.ip_network(item.source)
        if network.version != ipaddress.ip_address(address).version or ipaddress.ip_address(address) not in network:
            return False
    if item.source not in OPAQUE and address is None and ":" in item.source:
        return False
    doubtful = (
        item.protocol == "template" or item.source in OPAQUE or (address is None and item.source not in ("0.0.0.0/0",))
    )
    return None if doubtful else True


@settings(max_examples=400)
@given(
    rules,
    st.sampled_from(("TCP", "UDP", "ICMP")),
    st.sampled_from((22, 80, 443, 1500)),
    st.sampled_from((*ADDRESSES, None)),
)
def test_decision_is_what_every_reading_of_the_unknown_agrees_on(items, protocol, port, address):
    readings = [reading(item, protocol, port, address) for item in items]
    outcomes = set()
    for guess in itertools.product((True, False), repeat=readings.count(None)):
        answers = iter(guess)
        matched = (item for item, known in zip(items, readings) if (next(answers) if known is None else known))
        outcomes.add(next((item.action for item in matched), DROP))
    expected = outcomes.pop() if len(outcomes) == 1 else UNKNOWN
    decision = decide(items, protocol=protocol.lower(), port=port, source_address=address)
    assert decision.action == expected
    if expected == UNKNOWN:
        assert readings[items.index(decision.rule)] is None


def test_first_match_wins_over_a_later_accept():
    decision = decide(
        [rule(DROP, port="400-500", source="10.96.0.0/24"), rule(ACCEPT)],
        protocol="tcp",
        port=443,
        source_address="10.96.0.11",
    )
    assert (decision.action, decision.rule.action) == (DROP, DROP)


def test_no_matching_rule_is_dropped_by_default():
    assert decide([rule(port="80")], protocol="tcp", port=443, source_address="10.96.0.11").rule is None


def test_rule_for_some_addresses_is_not_certain_without_the_address():
    narrow = rule(ACCEPT, source="10.0.0.0/8")
    assert decide([narrow], protocol="tcp", port=443, source_address=None).rule == narrow
    assert decide([narrow], protocol="tcp", port=443, source_address=None).action == UNKNOWN
    assert decide([narrow, rule(ACCEPT)], protocol="tcp", port=443, source_address=None).action == ACCEPT


def test_template_that_would_decide_differently_is_named_not_guessed():
    template = rule(DROP, source="ipm-1a2b3c4d")
    decision = decide([template, rule(ACCEPT)], protocol="tcp", port=443, source_address="10.96.0.11")
    assert (decision.action, decision.rule) == (UNKNOWN, template)


def test_groups_apply_in_the_instances_order_and_rules_by_index():
    def policy(index: int, action: str) -> dict:
        return {"PolicyIndex": index, "Protocol": "tcp", "Port": "443", "CidrBlock": "0.0.0.0/0", "Action": action}

    ordered = effective_ingress([("sg-b", [policy(1, "ACCEPT"), policy(0, "DROP")]), ("sg-a", [policy(0, "ACCEPT")])])
    assert [(item.group, item.index, item.action) for item in ordered] == [
        ("sg-b", 0, "DROP"),
        ("sg-b", 1, "ACCEPT"),
        ("sg-a", 0, "ACCEPT"),
    ]


@pytest.mark.parametrize(
    ("policy", "protocol", "port", "source"),
    [
        ({"Protocol": "ALL", "Port": "all", "CidrBlock": "", "Ipv6CidrBlock": "::/0"}, "ALL", "all", "::/0"),
        ({"Protocol": "tcp", "Port": "22", "SecurityGroupId": "sg-x", "CidrBlock": ""}, "TCP", "22", "sg-x"),
        ({"Protocol": "tcp", "Port": "22", "AddressTemplate": {"AddressGroupId": "ipmg-x"}}, "TCP", "22", "ipmg-x"),
        ({"ServiceTemplate": {"ServiceId": "ppm-x"}, "CidrBlock": "0.0.0.0/0"}, "template", "ppm-x", "0.0.0.0/0"),
    ],
)
def test_policy_of_the_api_becomes_a_rule_and_survives_json(policy, protocol, port, source):
    item = rule_from_policy("sg-1", {"PolicyIndex": 3, "Action": "accept", **policy})
    assert (item.protocol, item.port, item.source, item.action) == (protocol, port, source, ACCEPT)
    assert rule_from_record(item.record()) == item
