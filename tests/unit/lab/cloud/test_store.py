# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What survives a restart of the lab."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lab.cloud.store import Disk, Instance, Store

from .conftest import DATABASE, WEB, CloudUnderTest, demo_store


def test_snapshot_holds_everything(fleet: CloudUnderTest, tmp_path: Path) -> None:
    fleet.call(
        fleet.vpc,
        "CreateSecurityGroupPolicies",
        SecurityGroupId="sg-fleetlift",
        SecurityGroupPolicySet={"Ingress": [{"Action": "DROP", "CidrBlock": "0.0.0.0/0"}]},
    )
    fleet.cloud.set_instance(WEB, RestrictState="EXPIRED")
    path = tmp_path / "cloud.json"
    again = Store(path)
    assert again.restored
    assert again.instances == fleet.store.instances
    assert again.disks == fleet.store.disks
    assert again.groups == fleet.store.groups
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.new"))


def test_snapshot_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    path.write_text(json.dumps({"schema": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="schema 99"):
        Store(path)


def test_restart_ends_interrupted_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    store = demo_store(tmp_path / "cloud.json")
    with store.changing():
        web, database = store.instances[WEB], store.instances[DATABASE]
        web.state, web.latest_operation, web.latest_operation_state = (
            "ENTER_RESCUE_MODE",
            "EnterRescueMode",
            "OPERATING",
        )
        database.state = "RUNNING"
        store.disks["disk-spare001"].state = "ATTACHING"
        store.disks["disk-spare001"].instance_id = WEB
    fleet = CloudUnderTest(tmp_path, Store(tmp_path / "cloud.json"), time.time, 0.0, provision=False)
    try:
        shown = fleet.instance(WEB)
        assert (shown["InstanceState"], shown["LatestOperationState"]) == ("STOPPED", "FAILED")
        assert "restart" in shown["LatestOperationErrorMsg"]
        assert fleet.instance(DATABASE)["InstanceState"] == "STOPPED"
        spare = fleet.call(fleet.cbs, "DescribeDisks", DiskIds=["disk-spare001"])["DiskSet"][0]
        assert (spare["DiskState"], spare["InstanceId"]) == ("UNATTACHED", "")
        fleet.call(fleet.cvm, "StartInstances", InstanceIds=[WEB])
        fleet.settled("RUNNING")
    finally:
        fleet.server.close()


def test_definitions_must_fit_together() -> None:
    store = demo_store()
    with pytest.raises(ValueError, match="disk-spare001 is defined twice"):
        store.add_disk(Disk("disk-spare001", 1, "ap-guangzhou-3"))
    with pytest.raises(ValueError, match="disk-one is not an id"):
        store.add_disk(Disk("disk-one", 1, "ap-guangzhou-3"))
    thief = Instance("ins-thief000", "t", "ap-guangzhou-3", "S5.SMALL1", "img-debian12", "disk-websys01", [])
    with pytest.raises(ValueError, match="disk-websys01 is attached to ins-webtgt01 already"):
        store.add_instance(thief)
    orphan = Instance("ins-orphan00", "o", "ap-guangzhou-3", "S5.SMALL1", "img-debian12", "disk-spare001", [])
    orphan.security_group_ids = ["sg-nothere0"]
    with pytest.raises(ValueError, match="security group sg-nothere0 is not defined"):
        store.add_instance(orphan)
    assert store.disks["disk-spare001"].state == "UNATTACHED"
