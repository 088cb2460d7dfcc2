# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CBS: cloud disks."""

from __future__ import annotations

import time

from lab.cloud.actions import Call, action, page
from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.filters import Filters
from lab.cloud.hypervisor import HypervisorError
from lab.cloud.parameters import JsonObject
from lab.cloud.store import DISK_ID, Disk, Instance, Store

MAXIMUM_DISKS_PER_CALL = 10
MIB_PER_GIB = 1024
MAXIMUM_DATA_DISKS = 20
DISK_TYPES = ("CLOUD_BASIC", "CLOUD_PREMIUM", "CLOUD_BSSD", "CLOUD_SSD", "CLOUD_HSSD", "CLOUD_TSSD")
SMALLEST_DISK, LARGEST_DISK = 1, 32000  # GiB; the vendor's minimum is 10 or 20 by type, the lab's machines have less

_OFFERED = frozenset(
    {"Placement", "DiskChargeType", "DiskType", "DiskName", "Tags", "DiskCount", "DiskSize", "ClientToken"}
)


@action("cbs")
def describe_disks(cloud: Cloud, call: Call) -> JsonObject:
    """Disks by ids or filters."""
    ids, filters = call.get("DiskIds"), call.get("Filters")
    if ids and filters:
        raise ApiError("InvalidParameterValue", "`DiskIds` and `Filters` cannot be given together.")
    with cloud.store.reading():
        disks = _ordered(_by_ids(cloud.store, ids), call)
        selected = _filters(cloud.store).select(disks, filters or [])
        shown = page(selected, call.get("Offset", 0), call.get("Limit", 20))
        answers = [_disk(item, len(cloud.store.snapshots_of(item.disk_id))) for item in shown]
        return {"TotalCount": len(selected), "DiskSet": answers}


@action("cbs")
def create_disks(cloud: Cloud, call: Call) -> JsonObject:
    """UNATTACHED data disks. The same ClientToken gives the same disks again."""
    _check_offered(call)
    zone = call.parameters["Placement"].get("Zone")
    if not zone:
        raise ApiError("MissingParameter", "The request is missing a required parameter `Placement.Zone`.")
    if zone not in cloud.store.site.zones:
        raise ApiError("InvalidParameterValue", f"The zone `{zone}` is not in this region.")
    token = call.get("ClientToken")
    with cloud.store.changing():
        key = f"CreateDisks {token}"
        if token and key in cloud.store.client_tokens:
            return {"DiskIdSet": cloud.store.client_tokens[key]}
        disks = [_new_disk(cloud.store, call, zone) for _ in range(call.get("DiskCount", 1))]
        for disk in disks:
            cloud.store.add_disk(disk)
        ids = [disk.disk_id for disk in disks]
        if token:
            cloud.store.client_tokens[key] = ids
    _make(cloud, disks, key)
    return {"DiskIdSet": ids}


@action("cbs")
def attach_disks(cloud: Cloud, call: Call) -> JsonObject:
    """UNATTACHED -> ATTACHING -> ATTACHED."""
    with cloud.store.changing():
        instance = _instance(cloud.store, call.parameters["InstanceId"])
        disks = _chosen(cloud.store, call)
        for disk in disks:
            if disk.instance_id is not None:
                raise ApiError("ResourceUnavailable.Attached", f"`{disk.disk_id}` is attached already.")
            _check_idle(disk, "UNATTACHED")
            if disk.zone != instance.zone:
                raise ApiError("ResourceUnavailable.ZoneNotMatch", f"`{disk.disk_id}` is in the zone {disk.zone}.")
        if len(instance.data_disk_ids) + len(disks) > MAXIMUM_DATA_DISKS:
            raise ApiError("LimitExceeded.InstanceAttachedDisk", f"More than {MAXIMUM_DATA_DISKS} data disks.")
        for disk in disks:
            disk.state, disk.instance_id, disk.error_prompt = "ATTACHING", instance.instance_id, ""
            disk.delete_with_instance = bool(call.get("DeleteWithInstance", False))
            cloud.transitions.submit(instance.instance_id, _attach, cloud, instance.instance_id, disk.disk_id)
    return {}


@action("cbs")
def detach_disks(cloud: Cloud, call: Call) -> JsonObject:
    """ATTACHED -> DETACHING -> UNATTACHED."""
    with cloud.store.changing():
        disks = _chosen(cloud.store, call)
        for disk in disks:
            _check_idle(disk, "ATTACHED")
            if call.get("InstanceId", disk.instance_id) != disk.instance_id:
                raise ApiError("InvalidParameterValue", f"`{disk.disk_id}` is attached to {disk.instance_id}.")
            _instance(cloud.store, disk.instance_id or "")
        for disk in disks:
            disk.state, disk.error_prompt = "DETACHING", ""
            cloud.transitions.submit(disk.instance_id or "", _detach, cloud, disk.instance_id, disk.disk_id)
    return {}


def _make(cloud: Cloud, disks: list[Disk], token_key: str) -> None:
    made: list[Disk] = []
    try:
        for disk in disks:
            cloud.hypervisor.create_disk(disk.disk_id, disk.size_gb)
            made.append(disk)
    except HypervisorError as error:
        for disk in made:
            cloud.hypervisor.delete_disk(disk.disk_id)
        with cloud.store.changing():
            for disk in disks:
                del cloud.store.disks[disk.disk_id]
            cloud.store.client_tokens.pop(token_key, None)
        raise ApiError("ResourceInsufficient", f"The disks could not be made: {error}.") from error


def _attach(cloud: Cloud, instance_id: str, disk_id: str) -> None:
    started = time.monotonic()
    with cloud.store.reading():
        size = cloud.store.disks[disk_id].size_gb
    failure = ""
    try:
        cloud.hypervisor.attach_disk(instance_id, disk_id, disk_id, size)
    except HypervisorError as error:
        failure = str(error)
    cloud.transitions.pause(started)
    with cloud.store.changing():
        disk = cloud.store.disks[disk_id]
        disk.error_prompt = failure
        if failure:
            disk.state, disk.instance_id = "UNATTACHED", None
        else:
            disk.state = "ATTACHED"
            cloud.store.instances[instance_id].data_disk_ids.append(disk_id)


def _detach(cloud: Cloud, instance_id: str, disk_id: str) -> None:
    started = time.monotonic()
    failure = ""
    try:
        cloud.hypervisor.detach_disk(instance_id, disk_id)
    except HypervisorError as error:
        failure = str(error)
    cloud.transitions.pause(started)
    with cloud.store.changing():
        disk = cloud.store.disks[disk_id]
        disk.error_prompt = failure
        if failure:
            disk.state = "ATTACHED"
        else:
            disk.state, disk.instance_id, disk.last_instance_id = "UNATTACHED", None, instance_id
            cloud.store.instances[instance_id].data_disk_ids.remove(disk_id)


def _check_offered(call: Call) -> None:
    for name in sorted(set(call.parameters) - _OFFERED):
        if call.parameters[name]:
            raise ApiError("InvalidParameter.DiskConfigNotSupported", f"The lab's cloud does not offer `{name}`.")
    if call.parameters["DiskChargeType"] != "POSTPAID_BY_HOUR":
        raise ApiError("InvalidParameter.DiskConfigNotSupported", "The lab's cloud sells disks by the hour only.")
    if call.parameters["DiskType"] not in DISK_TYPES:
        raise ApiError("InvalidParameterValue", f"The disk type `{call.parameters['DiskType']}` does not exist.")
    if "DiskSize" not in call.parameters:
        raise ApiError("MissingParameter", "The request is missing a required parameter `DiskSize`.")
    if not SMALLEST_DISK <= call.parameters["DiskSize"] <= LARGEST_DISK:
        raise ApiError("InvalidParameterValue", f"`DiskSize` is not between {SMALLEST_DISK} and {LARGEST_DISK} GiB.")
    if not 1 <= call.get("DiskCount", 1) <= MAXIMUM_DATA_DISKS:
        raise ApiError("InvalidParameterValue.LimitExceeded", f"`DiskCount` is not between 1 and {MAXIMUM_DATA_DISKS}.")
    token = call.get("ClientToken", "")
    if len(token) > 64 or not token.isascii():
        raise ApiError("InvalidParameter.InvalidClientToken", "`ClientToken` has at most 64 ASCII characters.")
    if len(call.get("DiskName", "").encode()) > 60:
        raise ApiError("InvalidParameterValue.LimitExceeded", "`DiskName` has at most 60 bytes.")


def _new_disk(store: Store, call: Call, zone: str) -> Disk:
    return Disk(
        disk_id=store.new_id("disk"),
        size_gb=call.parameters["DiskSize"],
        zone=zone,
        name=call.get("DiskName", "unnamed"),
        disk_type=call.parameters["DiskType"],
        tags={tag.get("Key", ""): tag.get("Value", "") for tag in call.get("Tags", [])},
    )


def _by_ids(store: Store, ids: list[str] | None) -> list[Disk]:
    if not ids:
        return list(store.disks.values())
    _check_ids(ids, 100)
    return [store.disks[name] for name in dict.fromkeys(ids) if name in store.disks]


def _chosen(store: Store, call: Call) -> list[Disk]:
    ids = call.parameters["DiskIds"]
    if not ids:
        raise ApiError("MissingParameter", "`DiskIds` names no disk.")
    _check_ids(ids, MAXIMUM_DISKS_PER_CALL)
    disks = []
    for name in dict.fromkeys(ids):
        if name not in store.disks:
            raise ApiError("InvalidDiskId.NotFound", f"The disk `{name}` does not exist.")
        if not store.disks[name].portable:
            raise ApiError("InvalidDisk.NotPortable", f"The disk `{name}` is not an elastic disk.")
        disks.append(store.disks[name])
    return disks


def _check_ids(ids: list[str], maximum: int) -> None:
    if len(ids) > maximum:
        code = "InvalidParameterValue.LimitExceeded" if maximum == MAXIMUM_DISKS_PER_CALL else "InvalidParameterValue"
        raise ApiError(code, f"More than {maximum} disk ids.")
    for name in ids:
        if not DISK_ID.fullmatch(name):
            raise ApiError("InvalidParameterValue", f"The disk id `{name}` is malformed.")


def _check_idle(disk: Disk, state: str) -> None:
    if disk.state in ("ATTACHING", "DETACHING", "EXPANDING", "ROLLBACKING", "DUMPING"):
        raise ApiError("ResourceBusy", f"`{disk.disk_id}` is {disk.state}, please try again later.")
    if disk.state != state:
        raise ApiError("InvalidDisk.NotSupported", f"`{disk.disk_id}` is {disk.state}, not {state}.")


def _instance(store: Store, instance_id: str) -> Instance:
    instance = store.instances.get(instance_id)
    if instance is None:
        raise ApiError("InvalidInstanceId.NotFound", f"The instance `{instance_id}` does not exist.")
    if instance.state not in ("RUNNING", "STOPPED") or instance.restrict_state != "NORMAL":
        raise ApiError(
            "InvalidInstance.NotSupported",
            f"The disks of `{instance_id}` cannot change: it is {instance.state} and {instance.restrict_state}.",
        )
    return instance


def _ordered(disks: list[Disk], call: Call) -> list[Disk]:
    field, order = call.get("OrderField", "CREATE_TIME"), call.get("Order", "ASC")
    if field not in ("CREATE_TIME", "DEADLINE") or order not in ("ASC", "DESC"):
        raise ApiError("InvalidParameterValue", f"Disks cannot be sorted by `{field}`, `{order}`.")
    return sorted(
        disks,
        key=lambda disk: disk.created if field == "CREATE_TIME" else disk.deadline or "",
        reverse=order == "DESC",
    )


def _filters(store: Store) -> Filters[Disk]:
    def owner(disk: Disk) -> Instance | None:
        return store.instances.get(disk.instance_id or "")

    def addresses(disk: Disk) -> list[str]:
        instance = owner(disk)
        return [*instance.private_addresses, *instance.public_addresses] if instance else []

    def owner_name(disk: Disk) -> list[str]:
        instance = owner(disk)
        return [instance.name] if instance else []

    return Filters(
        {
            "disk-charge-type": lambda disk: [disk.charge_type],
            "disk-id": lambda disk: [disk.disk_id],
            "disk-name": lambda disk: [disk.name],
            "disk-state": lambda disk: [disk.state],
            "disk-type": lambda disk: [disk.disk_type],
            "disk-usage": lambda disk: [disk.usage],
            "instance-id": lambda disk: [disk.instance_id] if disk.instance_id else [],
            "instance-ip-address": addresses,
            "instance-name": owner_name,
            "portable": lambda disk: ["TRUE" if disk.portable else "FALSE"],
            "zone": lambda disk: [disk.zone],
        },
        lambda disk: disk.tags,
        unknown_name="InvalidFilter",
        too_many="InvalidParameterValue",
    )


def _disk(disk: Disk, snapshots: int) -> JsonObject:
    return {
        "DiskId": disk.disk_id,
        "DiskName": disk.name,
        "DiskUsage": disk.usage,
        "DiskType": disk.disk_type,
        "DiskSize": disk.size_gb,
        "DiskState": disk.state,
        "DiskChargeType": disk.charge_type,
        "Attached": disk.state in ("ATTACHED", "DETACHING"),
        "InstanceId": disk.instance_id or "",
        "InstanceIdList": [],
        "InstanceType": "CVM" if disk.instance_id else "",
        "LastAttachInsId": disk.last_instance_id or disk.instance_id,
        "Portable": disk.portable,
        "Shareable": False,
        "Encrypt": False,
        "SnapshotAbility": True,
        "SnapshotCount": snapshots,
        "SnapshotSize": snapshots * disk.size_gb * MIB_PER_GIB,
        "Rollbacking": disk.state == "ROLLBACKING",
        "Migrating": False,
        "DeleteWithInstance": disk.delete_with_instance or disk.usage == "SYSTEM_DISK",
        "DeadlineTime": disk.deadline or "",
        "CreateTime": disk.created,
        "Placement": {"Zone": disk.zone, "ProjectId": 0},
        "Tags": [{"Key": key, "Value": value} for key, value in disk.tags.items()],
        "ErrorPrompt": disk.error_prompt,
    }
