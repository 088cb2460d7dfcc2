# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CVM RunInstances: buying instances."""

from __future__ import annotations

import ipaddress
import uuid
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from lab.cloud.actions import Call, action
from lab.cloud.cloud import Cloud, free_address
from lab.cloud.cvm import check_password
from lab.cloud.errors import ApiError
from lab.cloud.images import check_disk, find_image
from lab.cloud.instances import OPERATIONS, mark_operating
from lab.cloud.parameters import JsonObject
from lab.cloud.store import Disk, Instance, Store

DEFAULT_INSTANCE_TYPE = "S5.SMALL1"
DEFAULT_SYSTEM_DISK = 50  # GiB
MAXIMUM_INSTANCES = 100
MONTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 24, 36, 48, 60)

# What the lab's cloud can honour. Anything else is refused rather than ignored.
_OFFERED = frozenset(
    {
        "ClientToken",
        "DataDisks",
        "DisableApiTermination",
        "DryRun",
        "EnhancedService",
        "HostName",
        "ImageId",
        "InstanceChargePrepaid",
        "InstanceChargeType",
        "InstanceCount",
        "InstanceName",
        "InstanceType",
        "InternetAccessible",
        "LoginSettings",
        "MinCount",
        "Placement",
        "SecurityGroupIds",
        "SystemDisk",
        "TagSpecification",
        "VirtualPrivateCloud",
    }
)


@action("cvm")
def run_instances(cloud: Cloud, call: Call) -> JsonObject:
    """PENDING -> RUNNING. The same ClientToken gives the same instances again."""
    store = cloud.store
    _check_offered(call)
    zone = _zone(store, call)
    token = call.get("ClientToken", "")
    if len(token) > 64:
        raise ApiError("InvalidClientToken.TooLong", "`ClientToken` has at most 64 characters.")
    password = call.get("LoginSettings", {}).get("Password")
    if password is not None:
        check_password(password)
    key = f"RunInstances {token}"
    with store.changing():
        if token and key in store.client_tokens:
            return {"InstanceIdSet": store.client_tokens[key]}
        planned = _plan(store, call, zone)
        if call.get("DryRun"):
            raise ApiError("DryRunOperation", "Request was a dry run: it would have succeeded.")
        for instance, disks in planned:
            for disk in disks:
                store.add_disk(disk)
            store.add_instance(instance)
        ids = [instance.instance_id for instance, _ in planned]
        if token:
            store.client_tokens[key] = ids
        cloud.transitions.begin(
            [instance for instance, _ in planned], call.action, call.request_id, partial(_build, cloud, password)
        )
    return {"InstanceIdSet": ids}


def _build(cloud: Cloud, password: str | None, instance_id: str) -> str:
    cloud.build(instance_id, password, start=True)
    with cloud.store.reading():
        groups = list(cloud.store.instances[instance_id].security_group_ids)
        others = {name for group in groups for name in cloud.instances_affected_by(group)} - {instance_id}
    cloud.refresh_network(others)
    return "RUNNING"


def _check_offered(call: Call) -> None:
    for name in sorted(set(call.parameters) - _OFFERED):
        if call.parameters[name]:
            raise ApiError("UnsupportedOperation", f"The lab's cloud does not offer `{name}`.")
    for name in ("Placement", "ImageId"):
        if name not in call.parameters:
            raise ApiError("MissingParameter", f"The request is missing a required parameter `{name}`.")
    login = call.get("LoginSettings", {})
    if login.get("KeyIds"):
        raise ApiError("ResourceNotFound.KeyPairNotFound", "The lab's cloud has no key pairs.")
    if str(login.get("KeepImageLogin", "")).lower() == "true" and login.get("Password"):
        raise ApiError("InvalidParameter.ParameterConflict", "`KeepImageLogin` and `Password` exclude each other.")


def _zone(store: Store, call: Call) -> str:
    zone: str | None = call.parameters["Placement"].get("Zone")
    if not zone:
        raise ApiError("MissingParameter", "The request is missing a required parameter `Placement.Zone`.")
    if zone not in store.site.zones:
        raise ApiError("InvalidZone.MismatchRegion", f"The zone `{zone}` is not in the region {store.site.region}.")
    return zone


def _plan(store: Store, call: Call, zone: str) -> list[tuple[Instance, list[Disk]]]:
    count = call.get("InstanceCount", 1)
    if not 1 <= count <= MAXIMUM_INSTANCES:
        raise ApiError("InvalidParameterValue.Range", f"`InstanceCount` is not between 1 and {MAXIMUM_INSTANCES}.")
    if not 1 <= call.get("MinCount", count) <= count:
        raise ApiError("InvalidParameterValue.InvalidParameterMinCount", "`MinCount` is not 1 to `InstanceCount`.")
    for name in call.get("SecurityGroupIds", []):
        if name not in store.groups:
            raise ApiError("InvalidSecurityGroupId.NotFound", f"The security group `{name}` does not exist.")
    private = _private_addresses(store, call, count)
    public = _public_addresses(store, call, count)
    return [_instance(store, call, zone, private[index], public[index]) for index in range(count)]


def _instance(store: Store, call: Call, zone: str, private: str, public: list[str]) -> tuple[Instance, list[Disk]]:
    instance_type = call.get("InstanceType", DEFAULT_INSTANCE_TYPE)
    if instance_type not in store.site.instance_types:
        raise ApiError("InvalidParameterValue.InstanceTypeNotFound", f"There is no instance type `{instance_type}`.")
    if instance_type in store.site.sold_out:
        raise ApiError("ResourceInsufficient.SpecifiedInstanceType", f"`{instance_type}` is sold out in `{zone}`.")
    if not store.site.solvent:
        raise ApiError("InvalidAccount.InsufficientBalance", "The balance of the account is not sufficient.")
    cpu, memory = store.site.instance_types[instance_type]
    name = call.get("InstanceName", "unnamed")
    if len(name) > 128:
        raise ApiError("InvalidInstanceName.TooLong", "`InstanceName` has at most 128 characters.")
    tags = _tags(call)
    disks = _disks(store, call, zone, tags)
    image = find_image(store, call.parameters["ImageId"])
    check_disk(image, disks[0].size_gb)
    charge_type, expired = _charging(call)
    instance = Instance(
        instance_id=store.new_id("ins"),
        name=name,
        zone=zone,
        instance_type=instance_type,
        image_id=call.parameters["ImageId"],
        os_name=image.os_name,
        host_name=call.get("HostName", ""),
        system_disk_id=disks[0].disk_id,
        data_disk_ids=[disk.disk_id for disk in disks[1:]],
        private_addresses=[private],
        public_addresses=public,
        security_group_ids=call.get("SecurityGroupIds", []),
        bandwidth_out=call.get("InternetAccessible", {}).get("InternetMaxBandwidthOut", 0),
        cpu=cpu,
        memory_gb=memory,
        charge_type=charge_type,
        expired=expired,
        renew_flag="NOTIFY_AND_MANUAL_RENEW" if charge_type == "PREPAID" else None,
        disable_api_termination=call.get("DisableApiTermination", False),
        tags=tags,
        uuid=str(uuid.uuid4()),
        state=OPERATIONS["RunInstances"].passing,
    )
    mark_operating(instance, call.action, call.request_id)
    return instance, disks


def _charging(call: Call) -> tuple[str, str | None]:
    charge_type: str = call.get("InstanceChargeType", "POSTPAID_BY_HOUR")
    if charge_type == "POSTPAID_BY_HOUR":
        return charge_type, None
    if charge_type != "PREPAID":
        raise ApiError("UnsupportedOperation", f"The lab's cloud does not sell instances as `{charge_type}`.")
    if "Period" not in call.get("InstanceChargePrepaid", {}):
        raise ApiError("MissingParameter", "PREPAID instances need `InstanceChargePrepaid.Period`.")
    months = call.parameters["InstanceChargePrepaid"]["Period"]
    if months not in MONTHS:
        raise ApiError("InvalidPeriod", f"The period of {months} months cannot be bought.")
    expired = datetime.now(timezone.utc) + timedelta(days=365.25 / 12 * months)
    return charge_type, expired.strftime("%Y-%m-%dT%H:%M:%SZ")


def _tags(call: Call) -> dict[str, str]:
    return {
        tag.get("Key", ""): tag.get("Value", "")
        for specification in call.get("TagSpecification", [])
        if specification.get("ResourceType") == "instance"
        for tag in specification.get("Tags", [])
    }


def _disks(store: Store, call: Call, zone: str, tags: dict[str, str]) -> list[Disk]:
    system = call.get("SystemDisk", {})
    disks = [
        Disk(
            disk_id=store.new_id("disk"),
            size_gb=system.get("DiskSize", DEFAULT_SYSTEM_DISK),
            zone=zone,
            usage="SYSTEM_DISK",
            name=system.get("DiskName", ""),
            disk_type=system.get("DiskType", "CLOUD_BSSD"),
            tags=dict(tags),
        )
    ]
    for entry in call.get("DataDisks", []):
        disks.append(
            Disk(
                disk_id=store.new_id("disk"),
                size_gb=entry.get("DiskSize", 0),
                zone=zone,
                name=entry.get("DiskName", ""),
                disk_type=entry.get("DiskType", "CLOUD_BSSD"),
                delete_with_instance=entry.get("DeleteWithInstance", True),
                tags=dict(tags),
                origin=_origin(store, entry),
            )
        )
    for entry in [system, *call.get("DataDisks", [])]:
        if refused := set(entry) - {"DiskSize", "DiskType", "DiskName", "DeleteWithInstance", "SnapshotId"}:
            raise ApiError("InvalidParameterValue", f"The lab's cloud does not offer disks with {sorted(refused)}.")
    if any(disk.size_gb < 1 for disk in disks):
        raise ApiError("InvalidParameterValue", "`DiskSize` is at least 1 GiB.")
    return disks


def _origin(store: Store, entry: JsonObject) -> list[Any]:
    """The image and the number of the disk in it whose snapshot a data disk is to be made of; empty for a blank one."""
    wanted = entry.get("SnapshotId")
    if wanted is None:
        return []
    for image in store.images.values():
        for number, disk in enumerate(image.data_disks, start=1):
            if disk["snapshot_id"] == wanted:
                if entry.get("DiskSize", 0) < disk["size_gb"]:
                    raise ApiError(
                        "FailedOperation.SnapshotSizeLargerThanDataSize",
                        f"The snapshot `{wanted}` of {disk['size_gb']} GiB is larger than its data disk.",
                    )
                return [image.image_id, number]
    raise ApiError("InvalidParameter.SnapshotNotFound", f"No image has the snapshot `{wanted}`.")


def _private_addresses(store: Store, call: Call, count: int) -> list[str]:
    network = store.site.private_network
    wanted = call.get("VirtualPrivateCloud", {})
    if wanted.get("VpcId", store.site.vpc_id) not in (store.site.vpc_id, "DEFAULT"):
        raise ApiError("InvalidParameterValue.VpcIdNotExist", f"The VPC `{wanted['VpcId']}` does not exist.")
    if wanted.get("SubnetId", store.site.subnet_id) not in (store.site.subnet_id, "DEFAULT"):
        raise ApiError("InvalidParameterValue.SubnetNotExist", f"The subnet `{wanted['SubnetId']}` does not exist.")
    used = {address for item in store.instances.values() for address in item.private_addresses}
    chosen: list[str] = list(wanted.get("PrivateIpAddresses", []))
    if chosen and len(chosen) != count:
        raise ApiError("InvalidParameterCombination", "`PrivateIpAddresses` has one address for each instance.")
    for address in chosen:
        try:
            inside = ipaddress.ip_address(address) in ipaddress.ip_network(network)
        except ValueError as error:
            raise ApiError("InvalidParameterValue.IPAddressMalformed", f"`{address}` is not an address.") from error
        if not inside:
            raise ApiError("VpcAddrNotInSubNet", f"`{address}` is not in the subnet {network}.")
        if address in used or chosen.count(address) > 1:
            raise ApiError("VpcIpIsUsed", f"`{address}` is used already.")
    return chosen or _free(network, used, count)


def _public_addresses(store: Store, call: Call, count: int) -> list[list[str]]:
    internet = call.get("InternetAccessible", {})
    bandwidth = internet.get("InternetMaxBandwidthOut", 0)
    if not 0 <= bandwidth <= 200:
        raise ApiError("InvalidParameterValue.Range", "`InternetMaxBandwidthOut` is not between 0 and 200 Mbit/s.")
    if bandwidth == 0 or not internet.get("PublicIpAssigned", True):
        return [[] for _ in range(count)]
    used = {address for item in store.instances.values() for address in item.public_addresses}
    return [[address] for address in _free(store.site.public_network, used, count)]


def _free(network: str, used: set[str], count: int) -> list[str]:
    chosen: list[str] = []
    for _ in range(count):
        address = free_address(network, used.union(chosen))
        if address is None:
            raise ApiError("FailedOperation.NoAvailableIpAddressCountInSubnet", f"No address is free in {network}.")
        chosen.append(address)
    return chosen
