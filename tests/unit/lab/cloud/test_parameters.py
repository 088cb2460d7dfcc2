# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters and answers against the SDK's models, rates, and the request log."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lab.cloud.actions import HANDLERS
from lab.cloud.documented import PRODUCTS
from lab.cloud.errors import COMMON_CODES
from lab.cloud.limits import RateLimiter
from lab.cloud.parameters import ModelMismatch, check_response
from lab.cloud.request_log import redact

from .conftest import SECRET_KEY, WEB, Clock, CloudUnderTest


def test_every_documented_action_is_served_and_no_other() -> None:
    documented = {(product, action) for product, facts in PRODUCTS.items() for action in facts.actions}
    assert set(HANDLERS) == documented


@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_documented_codes_are_known_to_the_sdk(product: str) -> None:
    module = importlib.import_module(f"tencentcloud.{product}.v20170312.errorcodes")
    known = {value for value in vars(module).values() if isinstance(value, str)}
    for action, facts in PRODUCTS[product].actions.items():
        # The China and international SDKs differ by a few codes only; a wrong table would differ by many.
        unknown = facts.errors - known - COMMON_CODES
        assert len(unknown) <= len(facts.errors) / 4 + 1, (action, unknown)


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"InstanceIDs": [WEB]}, "UnknownParameter"),
        ({"Filters": [{"Name": "zone", "Value": ["a"]}]}, "UnknownParameter"),
        ({"InstanceIds": WEB}, "InvalidParameter"),
        ({"InstanceIds": [1]}, "InvalidParameter"),
        ({"Limit": "10"}, "InvalidParameter"),
        ({"Limit": True}, "InvalidParameter"),
        ({"Filters": ["zone"]}, "InvalidParameter"),
        ({"Limit": 101}, "InvalidParameterValue"),
        ({"Limit": 0}, "InvalidParameterValue"),
        ({"Offset": -1}, "InvalidParameterValue"),
    ],
)
def test_describe_instances_refuses_bad_parameters(fleet: CloudUnderTest, parameters: Any, code: str) -> None:
    assert fleet.refused(fleet.cvm, "DescribeInstances", **parameters) == code


@pytest.mark.parametrize(
    ("client", "action", "missing"),
    [
        (product, action, name)
        for product, facts in PRODUCTS.items()
        for action, item in facts.actions.items()
        for name in item.required
    ],
)
def test_required_parameter_is_missed(fleet: CloudUnderTest, client: str, action: str, missing: str) -> None:
    full = {
        "InstanceId": WEB,
        "InstanceIds": [WEB],
        "Password": "Rescue-pass-42",
        "Architecture": "x86_64",
        "ImageIds": ["img-00000000"],
        "ImageName": "web",
        "ImageUrl": "https://images-1250000000.cos.ap-guangzhou.myqcloud.com/web.raw",
        "OsType": "Debian",
        "OsVersion": "12",
        "Placement": {"Zone": "ap-guangzhou-3"},
        "DiskChargeType": "POSTPAID_BY_HOUR",
        "DiskType": "CLOUD_BSSD",
        "DiskId": "disk-spare001",
        "DiskIds": ["disk-spare001"],
        "SnapshotId": "snap-00000000",
        "SnapshotIds": ["snap-00000000"],
        "SecurityGroupId": "sg-fleetlift",
        "GroupName": "test",
        "GroupDescription": "",
        "SecurityGroupPolicySet": {"Ingress": [{"Action": "ACCEPT", "CidrBlock": "0.0.0.0/0"}]},
    }
    required = PRODUCTS[client].actions[action].required
    given = {name: full[name] for name in required if name != missing}
    assert fleet.refused(getattr(fleet, client), action, **given) == "MissingParameter"
    nulled = {**given, missing: None}
    assert fleet.refused(getattr(fleet, client), action, **nulled) == "MissingParameter"


def test_field_that_no_model_knows_never_leaves_the_cloud(
    fleet: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelMismatch, match="RegionColour"):
        check_response("cvm", "DescribeRegions", {"RegionSet": [{"RegionColour": "red"}]})
    monkeypatch.setitem(HANDLERS, ("cvm", "DescribeRegions"), lambda cloud, call: {"Regions": []})
    assert fleet.refused(fleet.cvm, "DescribeRegions") == "InternalError"


def test_calls_over_the_rate_are_refused_until_a_second_has_passed(timed_fleet: CloudUnderTest, clock: Clock) -> None:
    for _ in range(10):
        assert timed_fleet.refused(timed_fleet.cvm, "StopInstances", InstanceIds=["ins-nothere0"]) == (
            "InvalidInstanceId.NotFound"
        )
    stop = {"InstanceIds": [WEB]}
    assert timed_fleet.refused(timed_fleet.cvm, "StopInstances", **stop) == "RequestLimitExceeded"
    assert timed_fleet.call(timed_fleet.cvm, "DescribeZones")["TotalCount"] == 1
    clock.now += 0.9
    assert timed_fleet.refused(timed_fleet.cvm, "StopInstances", **stop) == "RequestLimitExceeded"
    clock.now += 0.2
    timed_fleet.call(timed_fleet.cvm, "StopInstances", **stop)


def test_rate_is_a_sliding_second_per_account_and_action(clock: Clock) -> None:
    limiter = RateLimiter(clock)
    for _ in range(2):
        limiter.admit("one", "cvm", "A", 2)
    limiter.admit("two", "cvm", "A", 2)
    limiter.admit("one", "cvm", "B", 2)
    clock.now += 0.5
    with pytest.raises(Exception, match="RequestLimitExceeded"):
        limiter.admit("one", "cvm", "A", 2)
    clock.now += 0.5
    limiter.admit("one", "cvm", "A", 2)


def test_every_request_is_logged_without_secrets(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "DescribeInstances", InstanceIds=[WEB])
    fleet.refused(fleet.cvm, "StartInstances", InstanceIds=[WEB])
    entries = fleet.log_entries()
    assert [(entry["product"], entry["action"], entry["code"]) for entry in entries] == [
        ("cvm", "DescribeInstances", "OK"),
        ("cvm", "StartInstances", "UnsupportedOperation.InstanceStateRunning"),
    ]
    assert entries[0]["parameters"] == {"InstanceIds": [WEB]}
    assert fleet.log_path.stat().st_mode & 0o777 == 0o600
    assert SECRET_KEY not in fleet.log_path.read_text(encoding="utf-8")


def test_redaction_reaches_nested_values_of_any_type() -> None:
    given = {"LoginSettings": {"Password": {"odd": "x"}, "KeyIds": ["k"]}, "L": [{"UserData": "s"}], "ClientToken": "t"}
    assert redact(given) == {
        "LoginSettings": {"Password": "***", "KeyIds": ["k"]},
        "L": [{"UserData": "***"}],
        "ClientToken": "t",
    }
