# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CBS: snapshots of cloud disks.

As the vendor describes the actions (product 362): a snapshot goes back onto the disk that it was made of and no other,
while an elastic disk is detached, or while the instance of a disk that is not elastic is off. Which of an action's
codes stands for which refusal is not documented; the nearest is used.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone

from lab.cloud.actions import Call, action, page
from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.filters import Filters
from lab.cloud.hypervisor import HypervisorError
from lab.cloud.parameters import JsonObject
from lab.cloud.store import DISK_ID, SNAPSHOT_ID, Disk, Snapshot, Store

MAXIMUM_IDS = 100
LONGEST_NAME = 60  # characters
UNNAMED = "unnamed"
LEAST_LIFE = timedelta(days=1)
CHANGING = ("ATTACHING", "DETACHING", "EXPANDING", "DUMPING")

SNAPSHOT_FILTERS: Filters[Snapshot] = Filters(
    {
        "snapshot-id": lambda item: [item.snapshot_id],
        "snapshot-name": lambda item: [item.name],
        "snapshot-state": lambda item: [item.state],
        "snapshot-type": lambda item: ["PRIVATE_SNAPSHOT"],
        "disk-usage": lambda item: [item.usage],
        "disk-id": lambda item: [item.disk_id],
        "project-id": lambda item: ["0"],
        "encrypt": lambda item: ["FALSE"],
    },
    # Other than of disks, there is no filter by tag.
    None,
    unknown_name="InvalidFilter",
    too_many="InvalidParameterValue",
)


@action("cbs")
def describe_snapshots(cloud: Cloud, call: Call) -> JsonObject:
    """Snapshots by ids or filters."""
    ids, filters = call.get("SnapshotIds"), call.get("Filters")
    if ids and filters:
        raise ApiError("InvalidParameterValue", "`SnapshotIds` and `Filters` cannot be given together.")
    field, order = call.get("OrderField", "CREATE_TIME"), call.get("Order", "ASC")
    if field != "CREATE_TIME" or order not in ("ASC", "DESC"):
        raise ApiError("InvalidParameterValue", f"Snapshots cannot be sorted by `{field}`, `{order}`.")
    with cloud.store.reading():
        if ids:
            _check_ids(ids)
            chosen = [cloud.store.snapshots[name] for name in dict.fromkeys(ids) if name in cloud.store.snapshots]
        else:
            chosen = list(cloud.store.snapshots.values())
        chosen = sorted(chosen, key=lambda item: item.created, reverse=order == "DESC")
        selected = SNAPSHOT_FILTERS.select(chosen, filters or [])
        shown = page(selected, call.get("Offset", 0), call.get("Limit", 20))
        return {"TotalCount": len(selected), "SnapshotSet": [_snapshot(item) for item in shown]}


@action("cbs")
def create_snapshot(cloud: Cloud, call: Call) -> JsonObject:
    """CREATING -> NORMAL. One that cannot be made vanishes, and its disk says why (ErrorPrompt)."""
    for name in ("DiskBackupId", "LocalSnap", "DiskUsage"):
        if call.get(name):
            raise ApiError("ResourceUnavailable.NotSupported", f"The lab's cloud does not offer `{name}`.")
    if "DiskId" not in call.parameters:
        raise ApiError("MissingParameter", "The request is missing a required parameter `DiskId`.")
    name, deadline = call.get("SnapshotName", UNNAMED), _deadline(call)
    if len(name) > LONGEST_NAME:
        raise ApiError("InvalidParameterValue", f"`SnapshotName` has at most {LONGEST_NAME} characters.")
    with cloud.store.changing():
        disk = _disk(cloud.store, call.parameters["DiskId"])
        _check_settled(disk)
        if any(item.state == "CREATING" for item in cloud.store.snapshots_of(disk.disk_id)):
            raise ApiError("ResourceUnavailable.SnapshotCreating", f"A snapshot of `{disk.disk_id}` is being created.")
        snapshot = Snapshot(
            snapshot_id=cloud.store.new_id("snap"),
            disk_id=disk.disk_id,
            size_gb=disk.size_gb,
            zone=disk.zone,
            usage=disk.usage,
            name=name,
            deadline=deadline,
            tags={tag.get("Key", ""): tag.get("Value", "") for tag in call.get("Tags", [])},
        )
        cloud.store.snapshots[snapshot.snapshot_id] = snapshot
        disk.error_prompt = ""
        cloud.transitions.submit(_worker(disk), _create, cloud, snapshot.snapshot_id)
    return {"SnapshotId": snapshot.snapshot_id}


@action("cbs")
def apply_snapshot(cloud: Cloud, call: Call) -> JsonObject:
    """The disk is ROLLBACKING until it holds what it held when the snapshot was made."""
    for name in ("AutoStopInstance", "AutoStartInstance"):
        if call.get(name):
            raise ApiError("InvalidParameterValue", f"The lab's cloud does not offer `{name}`.")
    with cloud.store.changing():
        snapshot = _existing(cloud.store, call.parameters["SnapshotId"])
        disk = _disk(cloud.store, call.parameters["DiskId"])
        _check_idle(snapshot)
        if snapshot.disk_id != disk.disk_id:
            raise ApiError(
                "InvalidParameterValue", f"`{snapshot.snapshot_id}` is of {snapshot.disk_id}, not of {disk.disk_id}."
            )
        _check_settled(disk)
        if any(item.state == "CREATING" for item in cloud.store.snapshots_of(disk.disk_id)):
            raise ApiError("InvalidDisk.SnapshotCreating", f"A snapshot of `{disk.disk_id}` is being created.")
        if disk.size_gb != snapshot.size_gb:
            raise ApiError("InvalidParameter.DiskSizeNotMatch", f"`{disk.disk_id}` has another size by now.")
        _check_out_of_use(cloud.store, disk)
        before, disk.state, disk.error_prompt = disk.state, "ROLLBACKING", ""
        snapshot.state = "ROLLBACKING"
        cloud.transitions.submit(_worker(disk), _apply, cloud, snapshot.snapshot_id, before)
    return {}


@action("cbs")
def delete_snapshots(cloud: Cloud, call: Call) -> JsonObject:
    """All of them, or none when one of them cannot be deleted."""
    ids = call.parameters["SnapshotIds"]
    if not ids:
        raise ApiError("MissingParameter", "`SnapshotIds` names no snapshot.")
    _check_ids(ids)
    with cloud.store.changing():
        snapshots = [_existing(cloud.store, name) for name in dict.fromkeys(ids)]
        for snapshot in snapshots:
            _check_idle(snapshot)
        for snapshot in snapshots:
            cloud.hypervisor.delete_snapshot(snapshot.snapshot_id)
            del cloud.store.snapshots[snapshot.snapshot_id]
    return {}


def _create(cloud: Cloud, snapshot_id: str) -> None:
    started = time.monotonic()
    with cloud.store.reading():
        disk_id = cloud.store.snapshots[snapshot_id].disk_id

    def progress(percent: int) -> None:
        with cloud.store.changing():
            cloud.store.snapshots[snapshot_id].percent = min(percent, 99)

    failure = ""
    try:
        cloud.hypervisor.snapshot_disk(disk_id, snapshot_id, progress)
    except HypervisorError as error:
        failure = str(error)
    cloud.transitions.pause(started)
    with cloud.store.changing():
        snapshot = cloud.store.snapshots[snapshot_id]
        if failure:
            del cloud.store.snapshots[snapshot_id]
            cloud.store.disks[disk_id].error_prompt = failure
        else:
            snapshot.state, snapshot.percent = "NORMAL", 100


def _apply(cloud: Cloud, snapshot_id: str, before: str) -> None:
    started = time.monotonic()
    with cloud.store.reading():
        disk_id = cloud.store.snapshots[snapshot_id].disk_id
    failure = ""
    try:
        cloud.hypervisor.apply_snapshot(snapshot_id, disk_id)
    except HypervisorError as error:
        failure = str(error)
    cloud.transitions.pause(started)
    with cloud.store.changing():
        cloud.store.snapshots[snapshot_id].state = "NORMAL"
        disk = cloud.store.disks[disk_id]
        disk.state, disk.error_prompt = before, failure


def _deadline(call: Call) -> str | None:
    text = call.get("Deadline")
    if text is None:
        return None
    try:
        deadline = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    except ValueError as error:
        raise ApiError("InvalidParameterValue", f"The value `{text}` of `Deadline` is not a time.") from error
    if deadline.tzinfo is None or deadline < datetime.now(timezone.utc) + LEAST_LIFE:
        raise ApiError("InvalidParameterValue", "`Deadline` is in UTC and at least a day ahead.")
    return deadline.strftime("%Y-%m-%d %H:%M:%S")


def _worker(disk: Disk) -> str:
    """Work on an attached disk must not overlap with work on its instance."""
    return disk.instance_id or disk.disk_id


def _check_ids(ids: list[str]) -> None:
    if len(ids) > MAXIMUM_IDS:
        raise ApiError("InvalidParameterValue", f"More than {MAXIMUM_IDS} snapshot ids.")
    for name in ids:
        if not SNAPSHOT_ID.fullmatch(name):
            raise ApiError("InvalidParameterValue", f"The snapshot id `{name}` is malformed.")


def _existing(store: Store, snapshot_id: str) -> Snapshot:
    _check_ids([snapshot_id])
    if snapshot_id not in store.snapshots:
        raise ApiError("InvalidSnapshotId.NotFound", f"The snapshot `{snapshot_id}` does not exist.")
    return store.snapshots[snapshot_id]


def _disk(store: Store, disk_id: str) -> Disk:
    if not DISK_ID.fullmatch(disk_id):
        raise ApiError("InvalidParameterValue", f"The disk id `{disk_id}` is malformed.")
    if disk_id not in store.disks:
        raise ApiError("InvalidDiskId.NotFound", f"The disk `{disk_id}` does not exist.")
    return store.disks[disk_id]


def _check_settled(disk: Disk) -> None:
    if disk.state == "ROLLBACKING":
        raise ApiError("ResourceInUse.DiskRollbacking", f"`{disk.disk_id}` is being rolled back.")
    if disk.state in CHANGING:
        raise ApiError("ResourceBusy", f"`{disk.disk_id}` is {disk.state}, please try again later.")
    if disk.state == "TORECYCLE":
        raise ApiError("InvalidDisk.NotSupported", f"`{disk.disk_id}` is about to be recycled.")


def _check_idle(snapshot: Snapshot) -> None:
    if snapshot.state == "CREATING":
        raise ApiError("ResourceUnavailable.SnapshotCreating", f"`{snapshot.snapshot_id}` is being created.")
    if snapshot.state != "NORMAL":
        raise ApiError("ResourceBusy", f"`{snapshot.snapshot_id}` is {snapshot.state}, please try again later.")


def _check_out_of_use(store: Store, disk: Disk) -> None:
    if disk.instance_id is None:
        return
    if disk.portable:
        raise ApiError("InvalidDisk.Busy", f"The elastic disk `{disk.disk_id}` is attached to {disk.instance_id}.")
    state = store.instances[disk.instance_id].state
    if state != "STOPPED":
        raise ApiError("InvalidInstance.NotSupported", f"`{disk.instance_id}` is {state}, not STOPPED.")


def _snapshot(item: Snapshot) -> JsonObject:
    return {
        "Placement": {"Zone": item.zone, "ProjectId": 0},
        "CopyFromRemote": False,
        "SnapshotState": item.state,
        "IsPermanent": item.deadline is None,
        "SnapshotName": item.name,
        "DeadlineTime": item.deadline or "",
        "Percent": item.percent,
        "Images": [],
        "ImageCount": 0,
        "ShareReference": 0,
        "SnapshotType": "PRIVATE_SNAPSHOT",
        "SnapshotMode": "STANDARD_SNAPSHOT",
        "DiskSize": item.size_gb,
        "DiskId": item.disk_id,
        "DiskUsage": item.usage,
        "CopyingToRegions": [],
        "Encrypt": False,
        "CreateTime": item.created,
        "SnapshotId": item.snapshot_id,
        "Tags": [{"Key": key, "Value": value} for key, value in item.tags.items()],
        "IsLocked": False,
    }
