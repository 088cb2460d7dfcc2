# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of a target's disks: taken before its first landing, put back when a migration is given up.

A snapshot is found again by its name, which holds the migration's, and by its disk: the API does not filter
snapshots by tag. It goes back onto its own disk only, while an elastic disk is detached, or while the instance of a
disk that is not elastic is off (the vendor's description of ApplySnapshot).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..findings import Refusal, refuse
from .client import CloudClient
from .errors import CloudError
from .instances import FILTER_VALUES, PAGE, Instances
from .waiter import DummyWaiter, Waiter

# The API's limit for a name, in characters.
LONGEST_NAME = 60
# Codes of a disk or snapshot on which something else is under way, which passes.
PASSING = (
    "InvalidDisk.SnapshotCreating",
    "ResourceBusy",
    "ResourceInUse",
    "ResourceInUse.DiskRollbacking",
    "ResourceUnavailable.SnapshotCreating",
    "ResourceUnavailable.TooManyCreatingSnapshot",
)


def snapshot_name(migration: str) -> str:
    """The name of a migration's snapshots, within the API's limit."""
    name = f"fleetlift-{migration}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(migration.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Snapshot:
    """One snapshot; ``state`` is the API's own, ``percent`` how much of it has been kept."""

    snapshot_id: str
    disk_id: str
    name: str
    state: str
    percent: int
    size_gb: int
    usage: str
    created: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CloudDisk:
    """A disk as CBS describes it."""

    disk_id: str
    state: str
    instance_id: str
    portable: bool
    delete_with_instance: bool
    error: str


class Snapshots:
    """The snapshots of one migration. ``waiter`` bounds how long all of it may take."""

    def __init__(
        self,
        client: CloudClient,
        instances: Instances,
        instance_id: str,
        name: str,
        waiter: Waiter | DummyWaiter,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._client = client
        self._instances = instances
        self._instance_id = instance_id
        self._name = name
        self._waiter = waiter
        self._tell = tell

    def disk_ids(self, wanted: Sequence[str]) -> list[str]:
        """The disks to keep: *wanted*, or all of the instance's. Raises ``Refusal`` for a disk of another."""
        own = [disk.disk_id for disk in self._instances.observe(self._instance_id).disks]
        foreign = [disk_id for disk_id in wanted if disk_id not in own]
        if foreign:
            raise refuse(
                "SNAPSHOT_DISK_FOREIGN",
                foreign[0],
                f"{', '.join(foreign)} is not attached to {self._instance_id}.",
                "Name disks of this instance, or none to take all of them.",
                disks=own,
            )
        return list(wanted) or own

    def found(self, disk_ids: Sequence[str] = ()) -> list[Snapshot]:
        """The migration's snapshots, of *disk_ids* or of all disks, oldest first."""
        filters: list[dict[str, Any]] = [{"Name": "snapshot-name", "Values": [self._name]}]
        alternatives = [
            [*filters, {"Name": "disk-id", "Values": list(disk_ids[start : start + FILTER_VALUES])}]
            for start in range(0, len(disk_ids), FILTER_VALUES)
        ] or [filters]
        snapshots = []
        for chosen in alternatives:
            offset = 0
            while True:
                params = {"Filters": chosen, "Offset": offset, "Limit": PAGE}
                answer = self._client.call("cbs", "DescribeSnapshots", params, expect=("TotalCount", "SnapshotSet"))
                snapshots += [_snapshot(item) for item in answer["SnapshotSet"]]
                offset += len(answer["SnapshotSet"])
                if not answer["SnapshotSet"] or offset >= answer["TotalCount"]:
                    break
        # Whether the filter matches the whole name is not documented.
        return [item for item in snapshots if item.name == self._name]

    def take(self, disk_ids: Sequence[str]) -> list[Snapshot]:
        """Has a snapshot made of each disk that has none, and waits for all of them.

        Raises ``Refusal`` SNAPSHOT_FAILED for one that vanished, or SNAPSHOT_TIMEOUT.
        """
        missing = self.missing(disk_ids)
        for disk_id in missing:
            self._patiently("CreateSnapshot", {"DiskId": disk_id, "SnapshotName": self._name})
        last = ""
        while True:
            snapshots = self.found(disk_ids)
            self._raise_if_vanished(disk_ids, snapshots)
            line = ", ".join(f"{item.disk_id} {item.percent} %" for item in snapshots)
            if line != last:
                self._tell(f"snapshots: {line}")
                last = line
            if all(item.state == "NORMAL" for item in snapshots) or not self._waiter.patient:
                return snapshots
            self._wait("The snapshots are not complete", line)

    def missing(self, disk_ids: Sequence[str]) -> list[str]:
        """The disks without a snapshot of this migration."""
        known = {item.disk_id for item in self.found(disk_ids)}
        return [disk_id for disk_id in disk_ids if disk_id not in known]

    def delete(self, snapshots: Sequence[Snapshot]) -> None:
        """Deletes them; one that is being made or put back is waited for."""
        if snapshots:
            self._patiently("DeleteSnapshots", {"SnapshotIds": [item.snapshot_id for item in snapshots]})

    def restorable(self) -> list[Snapshot]:
        """What can be put back: one snapshot of each disk. Raises ``Refusal`` before anything is changed."""
        snapshots = list({item.disk_id: item for item in reversed(self.found())}.values())
        target = self._instances.observe(self._instance_id)
        if not snapshots:
            raise refuse(
                "SNAPSHOT_MISSING",
                self._instance_id,
                f"There is no snapshot named {self._name}.",
                "Snapshots are taken before the first landing with fleetlift_target_snapshot: true; without one the"
                " disks of the target cannot be put back. Reinstall the instance instead.",
            )
        if target.state != "STOPPED" or target.latest_operation.state == "OPERATING":
            raise refuse(
                "SNAPSHOT_INSTANCE_NOT_STOPPED",
                self._instance_id,
                f"The instance {self._instance_id} is {target.state}; its disks are put back while it is off.",
                "Stop it with target_landing (state=stopped), then run again.",
                state=target.state,
            )
        return snapshots

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Puts each disk back and waits. Raises ``Refusal`` SNAPSHOT_RESTORE_FAILED or SNAPSHOT_TIMEOUT."""
        for snapshot in snapshots:
            disk = self._settled(snapshot.disk_id)
            attached = disk.portable and disk.state == "ATTACHED"
            if attached:
                self._patiently("DetachDisks", {"DiskIds": [disk.disk_id], "InstanceId": self._instance_id})
                self._until(disk.disk_id, "UNATTACHED")
            self._patiently("ApplySnapshot", {"SnapshotId": snapshot.snapshot_id, "DiskId": snapshot.disk_id})
            after = self._settled(snapshot.disk_id)
            if after.error:
                raise self._not_restored(snapshot, after)
            if after.state == "UNATTACHED":
                params = {
                    "DiskIds": [disk.disk_id],
                    "InstanceId": self._instance_id,
                    "DeleteWithInstance": disk.delete_with_instance,
                }
                self._patiently("AttachDisks", params)
                self._until(disk.disk_id, "ATTACHED")
            self._tell(f"{snapshot.disk_id} holds again what it held at {snapshot.created}")

    def _disk(self, disk_id: str) -> CloudDisk:
        answer = self._client.call("cbs", "DescribeDisks", {"DiskIds": [disk_id], "Limit": 1}, expect=("DiskSet",))
        for item in answer["DiskSet"]:
            return CloudDisk(
                disk_id=disk_id,
                state=str(item.get("DiskState") or ""),
                instance_id=str(item.get("InstanceId") or ""),
                portable=bool(item.get("Portable")),
                delete_with_instance=bool(item.get("DeleteWithInstance")),
                error=str(item.get("ErrorPrompt") or ""),
            )
        raise refuse(
            "SNAPSHOT_DISK_GONE",
            disk_id,
            f"The disk {disk_id} does not exist any more.",
            "Its snapshot can still become a new disk in the console.",
        )

    def _settled(self, disk_id: str) -> CloudDisk:
        while True:
            disk = self._disk(disk_id)
            if disk.state in ("ATTACHED", "UNATTACHED"):
                return disk
            self._wait(f"The disk {disk_id} is still {disk.state}", disk.state)

    def _until(self, disk_id: str, state: str) -> None:
        while True:
            disk = self._settled(disk_id)
            if disk.state == state:
                return
            self._wait(f"The disk {disk_id} is {disk.state}, not {state}", disk.error or disk.state)

    def _patiently(self, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Asks for a change, again while something else is under way on its disk."""
        while True:
            try:
                return self._client.call("cbs", action, params, idempotent=action != "CreateSnapshot")
            except CloudError as error:
                if error.code not in PASSING or not self._waiter.pause():
                    raise

    def _wait(self, what: str, seen: str) -> None:
        if not self._waiter.pause():
            raise refuse(
                "SNAPSHOT_TIMEOUT",
                self._instance_id,
                f"{what} after {self._waiter.waited:.0f} s ({seen}).",
                "Run again to go on waiting (nothing is started twice), or raise wait_timeout.",
                seen=seen,
            )

    def _raise_if_vanished(self, disk_ids: Sequence[str], snapshots: Sequence[Snapshot]) -> None:
        known = {item.disk_id for item in snapshots}
        for disk_id in disk_ids:
            if disk_id not in known:
                reason = self._disk(disk_id).error or "no reason given"
                raise refuse(
                    "SNAPSHOT_FAILED",
                    disk_id,
                    f"The snapshot of {disk_id} was begun and does not exist any more: {reason}.",
                    "Look at the disk and the snapshot quota in the console, then run again.",
                    reason=reason,
                )

    def _not_restored(self, snapshot: Snapshot, disk: CloudDisk) -> Refusal:
        return refuse(
            "SNAPSHOT_RESTORE_FAILED",
            snapshot.disk_id,
            f"The snapshot {snapshot.snapshot_id} could not be put back onto {snapshot.disk_id}: {disk.error}.",
            "Run again. The disk does not hold a usable system until it succeeds.",
            error=disk.error,
        )


def _snapshot(item: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        snapshot_id=str(item["SnapshotId"]),
        disk_id=str(item.get("DiskId") or ""),
        name=str(item.get("SnapshotName") or ""),
        state=str(item.get("SnapshotState") or ""),
        percent=int(item.get("Percent") or 0),
        size_gb=int(item.get("DiskSize") or 0),
        usage="system" if item.get("DiskUsage") == "SYSTEM_DISK" else "data",
        created=str(item.get("CreateTime") or ""),
    )
