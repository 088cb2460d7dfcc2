# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of cloud disks, through the SDK."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tencentcloud.cbs.v20170312 import models

from lab.cloud.cloud import INTERRUPTED, Cloud
from lab.cloud.store import Snapshot, Store

from .conftest import DATABASE, CloudUnderTest, RecordingHypervisor, demo_store
from .test_disks import SPARE, disk, in_state

SYSTEM = "disk-dbsys001"
DATA = "disk-dbdata01"


def snapshots(fleet: CloudUnderTest, **question: Any) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = fleet.call(fleet.cbs, "DescribeSnapshots", **question)["SnapshotSet"]
    return shown


def taken(fleet: CloudUnderTest, disk_id: str = SPARE, name: str = "before") -> str:
    snapshot: str = fleet.call(fleet.cbs, "CreateSnapshot", DiskId=disk_id, SnapshotName=name)["SnapshotId"]
    fleet.until(lambda: snapshots(fleet, SnapshotIds=[snapshot])[0]["SnapshotState"] == "NORMAL", "the snapshot")
    return snapshot


def stopped(fleet: CloudUnderTest) -> None:
    fleet.call(fleet.cvm, "StopInstances", InstanceIds=[DATABASE])
    fleet.settled("STOPPED", DATABASE)


def test_sdk_reads_every_field_of_a_snapshot(fleet: CloudUnderTest) -> None:
    request = models.CreateSnapshotRequest()
    request.DiskId, request.SnapshotName = SYSTEM, "before"
    request.Tags = [models.Tag()]
    request.Tags[0].Key, request.Tags[0].Value = "fleet", "demo"
    fleet.hypervisor.gate.clear()
    snapshot_id = fleet.cbs.CreateSnapshot(request).SnapshotId
    describe = models.DescribeSnapshotsRequest()
    describe.SnapshotIds = [snapshot_id]
    item = fleet.until(
        lambda: next((each for each in fleet.cbs.DescribeSnapshots(describe).SnapshotSet if each.Percent == 50), None),
        "half of the snapshot",
    )
    assert (item.SnapshotState, item.SnapshotName, item.DiskId, item.DiskUsage) == (
        "CREATING",
        "before",
        SYSTEM,
        "SYSTEM_DISK",
    )
    assert (item.DiskSize, item.IsPermanent, item.Tags[0].Key, item.Placement.Zone) == (
        50,
        True,
        "fleet",
        "ap-guangzhou-3",
    )
    fleet.hypervisor.gate.set()
    fleet.until(lambda: snapshots(fleet, SnapshotIds=[snapshot_id])[0]["Percent"] == 100, "the whole snapshot")
    assert snapshots(fleet)[0]["SnapshotState"] == "NORMAL"
    assert disk(fleet, SYSTEM)["SnapshotCount"] == 1


def test_snapshot_can_be_taken_of_a_running_instance_s_disk(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet, SYSTEM)
    assert ("snapshot_disk", SYSTEM, snapshot) in fleet.hypervisor.calls
    assert fleet.instance(DATABASE)["InstanceState"] == "RUNNING"


def test_snapshot_that_cannot_be_made_vanishes_and_the_disk_says_why(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.fail.add("snapshot_disk")
    fleet.call(fleet.cbs, "CreateSnapshot", DiskId=SPARE)
    fleet.until(lambda: not snapshots(fleet), "the end of the snapshot")
    assert "failed as asked" in disk(fleet)["ErrorPrompt"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("disk-id", SPARE, 1),
        ("snapshot-name", "before", 2),
        ("snapshot-name", "after", 0),
        ("snapshot-state", "NORMAL", 2),
        ("disk-usage", "SYSTEM_DISK", 1),
    ],
)
def test_filters(fleet: CloudUnderTest, name: str, value: str, found: int) -> None:
    taken(fleet)
    taken(fleet, SYSTEM)
    assert len(snapshots(fleet, Filters=[{"Name": name, "Values": [value]}])) == found


def test_snapshots_cannot_be_found_by_tag(fleet: CloudUnderTest) -> None:
    describe = fleet.cbs, "DescribeSnapshots"
    assert fleet.refused(*describe, Filters=[{"Name": "tag:fleet", "Values": ["demo"]}]) == "InvalidFilter"
    assert fleet.refused(*describe, Filters=[{"Name": "tag-key", "Values": ["fleet"]}]) == "InvalidFilter"
    assert fleet.refused(*describe, SnapshotIds=["snap-1"]) == "InvalidParameterValue"
    assert fleet.refused(*describe, OrderField="SIZE") == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({}, "MissingParameter"),
        ({"DiskId": "sda"}, "InvalidParameterValue"),
        ({"DiskId": "disk-nodisk01"}, "InvalidDiskId.NotFound"),
        ({"DiskId": SPARE, "SnapshotName": "x" * 61}, "InvalidParameterValue"),
        ({"DiskId": SPARE, "Deadline": "soon"}, "InvalidParameterValue"),
        ({"DiskId": SPARE, "Deadline": "2020-01-01T00:00:00+00:00"}, "InvalidParameterValue"),
        ({"DiskId": SPARE, "LocalSnap": True}, "ResourceUnavailable.NotSupported"),
        ({"DiskId": SPARE, "Colour": "red"}, "UnknownParameter"),
    ],
)
def test_bad_order_is_refused(fleet: CloudUnderTest, order: dict[str, Any], code: str) -> None:
    assert fleet.refused(fleet.cbs, "CreateSnapshot", **order) == code
    assert snapshots(fleet) == []


def test_deadline_makes_a_snapshot_that_is_not_permanent(fleet: CloudUnderTest) -> None:
    later = (datetime.now(timezone.utc) + timedelta(days=2)).isoformat(timespec="seconds")
    fleet.call(fleet.cbs, "CreateSnapshot", DiskId=SPARE, Deadline=later)
    assert snapshots(fleet)[0]["IsPermanent"] is False


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("ROLLBACKING", "ResourceInUse.DiskRollbacking"),
        ("ATTACHING", "ResourceBusy"),
        ("TORECYCLE", "InvalidDisk.NotSupported"),
    ],
)
def test_disk_that_is_busy_has_no_snapshot_taken(fleet: CloudUnderTest, state: str, code: str) -> None:
    fleet.cloud.set_disk(SPARE, DiskState=state)
    assert fleet.refused(fleet.cbs, "CreateSnapshot", DiskId=SPARE) == code


def test_one_snapshot_of_a_disk_at_a_time(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    snapshot = fleet.call(fleet.cbs, "CreateSnapshot", DiskId=SPARE)["SnapshotId"]
    creating = "ResourceUnavailable.SnapshotCreating"
    assert fleet.refused(fleet.cbs, "CreateSnapshot", DiskId=SPARE) == creating
    assert fleet.refused(fleet.cbs, "ApplySnapshot", SnapshotId=snapshot, DiskId=SPARE) == creating
    assert fleet.refused(fleet.cbs, "DeleteSnapshots", SnapshotIds=[snapshot]) == creating


def test_detached_disk_goes_back_to_its_snapshot(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet)
    fleet.hypervisor.gate.clear()
    fleet.call(fleet.cbs, "ApplySnapshot", SnapshotId=snapshot, DiskId=SPARE)
    assert (disk(fleet)["DiskState"], disk(fleet)["Rollbacking"]) == ("ROLLBACKING", True)
    assert snapshots(fleet)[0]["SnapshotState"] == "ROLLBACKING"
    assert fleet.refused(fleet.cbs, "DeleteSnapshots", SnapshotIds=[snapshot]) == "ResourceBusy"
    fleet.hypervisor.gate.set()
    in_state(fleet, "UNATTACHED")
    assert ("apply_snapshot", SPARE, snapshot) in fleet.hypervisor.calls
    assert snapshots(fleet)[0]["SnapshotState"] == "NORMAL"


def test_system_disk_goes_back_only_while_its_instance_is_off(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet, SYSTEM)
    order = {"SnapshotId": snapshot, "DiskId": SYSTEM}
    assert fleet.refused(fleet.cbs, "ApplySnapshot", **order) == "InvalidInstance.NotSupported"
    stopped(fleet)
    fleet.hypervisor.gate.clear()
    fleet.call(fleet.cbs, "ApplySnapshot", **order)
    busy = "OperationDenied.InstanceOperationInProgress"
    assert fleet.refused(fleet.cvm, "StartInstances", InstanceIds=[DATABASE]) == busy
    assert fleet.refused(fleet.cvm, "EnterRescueMode", InstanceId=DATABASE, Password="Rescue-pass-42") == busy
    fleet.hypervisor.gate.set()
    in_state(fleet, "ATTACHED", SYSTEM)
    fleet.call(fleet.cvm, "StartInstances", InstanceIds=[DATABASE])
    fleet.settled("RUNNING", DATABASE)
    assert fleet.hypervisor.overlaps == 0


def test_elastic_disk_goes_back_only_while_it_is_detached(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet, DATA)
    stopped(fleet)
    assert fleet.refused(fleet.cbs, "ApplySnapshot", SnapshotId=snapshot, DiskId=DATA) == "InvalidDisk.Busy"


def test_snapshot_goes_back_onto_its_own_disk_only(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet)
    order = {"SnapshotId": snapshot, "DiskId": SPARE}
    assert fleet.refused(fleet.cbs, "ApplySnapshot", **{**order, "DiskId": SYSTEM}) == "InvalidParameterValue"
    assert (
        fleet.refused(fleet.cbs, "ApplySnapshot", **{**order, "SnapshotId": "snap-00000000"})
        == "InvalidSnapshotId.NotFound"
    )
    assert fleet.refused(fleet.cbs, "ApplySnapshot", **order, AutoStartInstance=True) == "InvalidParameterValue"
    fleet.store.disks[SPARE].size_gb += 1
    assert fleet.refused(fleet.cbs, "ApplySnapshot", **order) == "InvalidParameter.DiskSizeNotMatch"


def test_rollback_that_fails_is_said_at_the_disk(fleet: CloudUnderTest) -> None:
    snapshot = taken(fleet)
    fleet.hypervisor.fail.add("apply_snapshot")
    fleet.call(fleet.cbs, "ApplySnapshot", SnapshotId=snapshot, DiskId=SPARE)
    assert "failed as asked" in in_state(fleet, "UNATTACHED")["ErrorPrompt"]


def test_snapshots_are_deleted_together_or_not_at_all(fleet: CloudUnderTest) -> None:
    first, second = taken(fleet), taken(fleet, SYSTEM)
    both_and_none = [first, second, "snap-00000000"]
    assert fleet.refused(fleet.cbs, "DeleteSnapshots", SnapshotIds=both_and_none) == "InvalidSnapshotId.NotFound"
    assert len(snapshots(fleet)) == 2
    fleet.call(fleet.cbs, "DeleteSnapshots", SnapshotIds=[first, second])
    assert snapshots(fleet) == []
    assert ("delete_snapshot", first) in fleet.hypervisor.calls


def test_restart_forgets_half_a_snapshot_and_ends_a_rollback(tmp_path: Path) -> None:
    path = tmp_path / "cloud.json"
    store = demo_store(path)
    kept = {"size_gb": 20, "zone": "ap-guangzhou-3", "usage": "DATA_DISK", "name": ""}
    with store.changing():
        store.snapshots["snap-half0001"] = Snapshot("snap-half0001", SPARE, **kept)
        store.snapshots["snap-back0001"] = Snapshot("snap-back0001", SPARE, **kept, state="ROLLBACKING", percent=100)
        store.disks[SPARE].state = "ROLLBACKING"
    again = Store(path)
    Cloud(again, RecordingHypervisor()).recover()
    assert {item.snapshot_id: item.state for item in again.snapshots.values()} == {"snap-back0001": "NORMAL"}
    assert (again.disks[SPARE].state, again.disks[SPARE].error_prompt) == ("UNATTACHED", INTERRUPTED)
