# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CVM: instances, zones and regions."""

from __future__ import annotations

import string
import time
from collections.abc import Sequence
from functools import partial

from lab.cloud.actions import Call, action, page
from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.filters import Filters
from lab.cloud.hypervisor import HypervisorError
from lab.cloud.instances import check_admissible
from lab.cloud.parameters import JsonObject
from lab.cloud.store import INSTANCE_ID, Disk, Instance, Store

MAXIMUM_IDS = 100
ARM_FAMILIES = ("SR1",)
MAXIMUM_GROUPS = 5  # of one instance, by default
LONGEST_INSTANCE_NAME = 60
MODIFIABLE = {
    "InstanceName": "name",
    "SecurityGroups": "security_group_ids",
    "DisableApiTermination": "disable_api_termination",
}

_SYMBOLS = "()`~!@#$%^&*-+=|{}[]:;',.?/"

INSTANCE_FILTERS: Filters[Instance] = Filters(
    {
        "instance-charge-type": lambda item: [item.charge_type],
        "instance-id": lambda item: [item.instance_id],
        "instance-name": lambda item: [item.name],
        "instance-state": lambda item: [item.state],
        "private-ip-address": lambda item: item.private_addresses,
        "public-ip-address": lambda item: item.public_addresses,
        "security-group-id": lambda item: item.security_group_ids,
        "uuid": lambda item: [item.uuid],
        "zone": lambda item: [item.zone],
    },
    lambda item: item.tags,
    unknown_name="InvalidFilter",
    too_many="InvalidFilterValue.LimitExceeded",
)


@action("cvm")
def describe_regions(cloud: Cloud, call: Call) -> JsonObject:
    """The one region of this cloud."""
    site = cloud.store.site
    region = {"Region": site.region, "RegionName": site.region_name, "RegionState": "AVAILABLE"}
    return {"TotalCount": 1, "RegionSet": [region]}


@action("cvm")
def describe_zones(cloud: Cloud, call: Call) -> JsonObject:
    """The zones of the region."""
    site = cloud.store.site
    zones = [
        {
            "Zone": zone,
            "ZoneName": f"{site.region_name} Zone {zone.rsplit('-', 1)[-1]}",
            "ZoneId": f"10000{zone.rsplit('-', 1)[-1]}",
            "ZoneState": "AVAILABLE",
        }
        for zone in site.zones
    ]
    return {"TotalCount": len(zones), "ZoneSet": zones}


@action("cvm")
def describe_instances(cloud: Cloud, call: Call) -> JsonObject:
    """Instances by ids or filters. Unknown ids are left out, as the vendor documents no error for them here."""
    ids, filters = call.get("InstanceIds"), call.get("Filters")
    if ids and filters:
        raise ApiError("InvalidParameter", "`InstanceIds` and `Filters` cannot be given together.")
    with cloud.store.reading():
        selected = INSTANCE_FILTERS.select(_by_ids(cloud.store, ids), filters or [])
        shown = page(selected, call.get("Offset", 0), call.get("Limit", 20))
        return {"TotalCount": len(selected), "InstanceSet": [_instance(cloud.store, item) for item in shown]}


@action("cvm")
def describe_instances_status(cloud: Cloud, call: Call) -> JsonObject:
    """The states of instances, by ids."""
    with cloud.store.reading():
        selected = _by_ids(cloud.store, call.get("InstanceIds"))
        shown = page(selected, call.get("Offset", 0), call.get("Limit", 20))
        states = [{"InstanceId": item.instance_id, "InstanceState": item.state} for item in shown]
        return {"TotalCount": len(selected), "InstanceStatusSet": states}


@action("cvm")
def start_instances(cloud: Cloud, call: Call) -> JsonObject:
    """STOPPED -> STARTING -> RUNNING."""

    def work(instance_id: str) -> str:
        cloud.hypervisor.start(instance_id)
        _set_stop_charging(cloud.store, instance_id, "NOT_APPLICABLE")
        return "RUNNING"

    with cloud.store.changing():
        cloud.transitions.begin(
            admitted(cloud.store, call.parameters["InstanceIds"], call.action), call.action, call.request_id, work
        )
    return {}


@action("cvm")
def stop_instances(cloud: Cloud, call: Call) -> JsonObject:
    """RUNNING -> STOPPING -> STOPPED."""
    how = _stop_type(call, "ForceStop", "InvalidParameterCombination")
    mode = _choice(call, "StoppedMode", ("KEEP_CHARGING", "STOP_CHARGING"), "KEEP_CHARGING")

    def work(instance_id: str) -> str:
        power_off(cloud, instance_id, how)
        _set_stop_charging(cloud.store, instance_id, mode)
        return "STOPPED"

    with cloud.store.changing():
        instances = admitted(cloud.store, call.parameters["InstanceIds"], call.action)
        if mode == "STOP_CHARGING" and any(item.charge_type != "POSTPAID_BY_HOUR" for item in instances):
            raise ApiError(
                "UnsupportedOperation.StoppedModeStopCharging", "Only instances paid by the hour can stop charging."
            )
        cloud.transitions.begin(instances, call.action, call.request_id, work)
    return {}


@action("cvm")
def reboot_instances(cloud: Cloud, call: Call) -> JsonObject:
    """RUNNING -> REBOOTING -> RUNNING."""
    how = _stop_type(call, "ForceReboot", "InvalidParameterCombination")

    def work(instance_id: str) -> str:
        if how == "HARD":
            cloud.hypervisor.stop(instance_id, True)
            cloud.hypervisor.start(instance_id)
        else:
            _reboot(cloud, instance_id, how)
        return "RUNNING"

    with cloud.store.changing():
        cloud.transitions.begin(
            admitted(cloud.store, call.parameters["InstanceIds"], call.action), call.action, call.request_id, work
        )
    return {}


@action("cvm")
def terminate_instances(cloud: Cloud, call: Call) -> JsonObject:
    """Postpaid instances are destroyed; prepaid ones are isolated (SHUTDOWN) first and destroyed by a second call."""
    if call.get("ReleaseAddress") or call.get("ReleasePrepaidDataDisks"):
        raise ApiError("UnsupportedOperation", "This cloud has no elastic addresses or prepaid data disks to release.")
    with cloud.store.changing():
        instances = admitted(cloud.store, call.parameters["InstanceIds"], call.action)
        for instance in instances:
            if instance.disable_api_termination:
                raise ApiError(
                    "UnsupportedOperation.InstancesProtected",
                    f"`{instance.instance_id}` is protected from termination.",
                )
        isolated = [item for item in instances if item.charge_type == "PREPAID" and item.state != "SHUTDOWN"]
        doomed = [item for item in instances if item not in isolated]
        cloud.transitions.begin(isolated, call.action, call.request_id, partial(_isolate, cloud))
        cloud.transitions.begin(doomed, call.action, call.request_id, partial(_destroy, cloud))
    return {}


@action("cvm")
def enter_rescue_mode(cloud: Cloud, call: Call) -> JsonObject:
    """RUNNING or STOPPED -> ENTER_RESCUE_MODE -> RESCUE_MODE. The password goes to the machine and nowhere else."""
    how = _stop_type(call, "ForceStop", "InvalidParameter")
    username = call.get("Username", "root")
    password = call.parameters["Password"]
    check_password(password)

    def work(instance_id: str) -> str:
        if cloud.hypervisor.is_running(instance_id):
            power_off(cloud, instance_id, how)
        try:
            cloud.hypervisor.rescue(instance_id, username, password)
        except HypervisorError as error:
            # The text becomes LatestOperationErrorMsg, which everybody may read.
            raise HypervisorError(str(error).replace(password, "***")) from None
        return "RESCUE_MODE"

    with cloud.store.changing():
        (instance,) = admitted(cloud.store, [call.parameters["InstanceId"]], call.action)
        if instance.instance_type.split(".")[0] in ARM_FAMILIES:
            raise ApiError("UnsupportedOperation.ArmArchitecture", f"`{instance.instance_id}` is an ARM instance.")
        if instance.stop_charging_mode == "STOP_CHARGING":
            raise ApiError(
                "UnsupportedOperation.StoppedModeStopCharging",
                f"`{instance.instance_id}` was stopped without charging, its resources are released.",
            )
        cloud.transitions.begin([instance], call.action, call.request_id, work)
    return {}


@action("cvm")
def exit_rescue_mode(cloud: Cloud, call: Call) -> JsonObject:
    """RESCUE_MODE -> EXIT_RESCUE_MODE -> STOPPED: the instance stays off until it is started."""

    def work(instance_id: str) -> str:
        power_off(cloud, instance_id, "SOFT_FIRST")
        return "STOPPED"

    with cloud.store.changing():
        (instance,) = admitted(cloud.store, [call.parameters["InstanceId"]], call.action)
        cloud.transitions.begin([instance], call.action, call.request_id, work)
    return {}


@action("cvm")
def modify_instances_attribute(cloud: Cloud, call: Call) -> JsonObject:
    """One attribute of instances; security groups are in force when the operation has ended."""
    given = sorted(set(call.parameters) - {"InstanceIds"})
    if len(given) != 1:
        raise ApiError("InvalidParameterValue", f"One attribute is changed at a time, not {len(given)}.")
    attribute = MODIFIABLE.get(given[0])
    if attribute is None:
        raise ApiError("InvalidParameterValue", f"The lab's cloud does not offer `{given[0]}`.")
    value = call.parameters[given[0]]
    if attribute == "name" and len(value) > LONGEST_INSTANCE_NAME:
        raise ApiError("InvalidInstanceName.TooLong", f"`InstanceName` has at most {LONGEST_INSTANCE_NAME} characters.")

    def work(instance_id: str) -> str:
        cloud.apply_network(instance_id)
        return "RUNNING" if cloud.hypervisor.is_running(instance_id) else "STOPPED"

    with cloud.store.changing():
        if attribute == "security_group_ids":
            value = list(dict.fromkeys(value))
            _check_groups(cloud.store, value)
        instances = admitted(cloud.store, call.parameters["InstanceIds"], call.action)
        involved = {group for item in instances for group in item.security_group_ids}
        for instance in instances:
            setattr(instance, attribute, value)
        cloud.transitions.begin(instances, call.action, call.request_id, work)
        if attribute == "security_group_ids":
            others = {name for group in involved.union(value) for name in cloud.instances_affected_by(group)}
            cloud.refresh_network(others - {item.instance_id for item in instances})
    return {}


def _check_groups(store: Store, group_ids: list[str]) -> None:
    if not group_ids:
        raise ApiError("InvalidParameterValue", "`SecurityGroups` names no group.")
    if len(group_ids) > MAXIMUM_GROUPS:
        raise ApiError("LimitExceeded.AssociateUSGLimitExceeded", f"More than {MAXIMUM_GROUPS} security groups.")
    for name in group_ids:
        if name not in store.groups:
            raise ApiError("InvalidSecurityGroupId.NotFound", f"The security group `{name}` does not exist.")


def check_password(password: str) -> None:
    """The rule for Linux instances: 8 to 30 characters, at least two kinds of four, none outside them."""
    kinds = (string.ascii_lowercase, string.ascii_uppercase, string.digits, _SYMBOLS)
    used = sum(any(character in kind for character in password) for kind in kinds)
    foreign = any(character not in "".join(kinds) for character in password)
    if not 8 <= len(password) <= 30 or used < 2 or foreign or password.startswith("/"):
        raise ApiError(
            "InvalidParameterValue.InvalidPassword",
            "The password must have 8 to 30 characters, of at least two kinds among a-z, A-Z, 0-9 and "
            f"{_SYMBOLS}, and must not start with /.",
        )


def _by_ids(store: Store, ids: list[str] | None) -> list[Instance]:
    if not ids:
        return list(store.instances.values())
    _check_ids(ids)
    return [store.instances[name] for name in dict.fromkeys(ids) if name in store.instances]


def admitted(store: Store, ids: list[str], action_name: str) -> list[Instance]:
    """The instances of these ids, each of which is in a state that the action may start from (or the refusal)."""
    if not ids:
        raise ApiError("MissingParameter", "`InstanceIds` names no instance.")
    _check_ids(ids)
    instances = [_existing(store, name) for name in dict.fromkeys(ids)]
    for instance in instances:
        check_admissible(instance, action_name)
        busy = [name for name in instance.disk_ids if store.disks[name].state == "ROLLBACKING"]
        if busy:
            raise ApiError(
                "OperationDenied.InstanceOperationInProgress",
                f"`{instance.instance_id}` has a disk that is being rolled back ({busy[0]}), please try again later.",
            )
    return instances


def _existing(store: Store, instance_id: str) -> Instance:
    _check_ids([instance_id])
    if instance_id not in store.instances:
        raise ApiError("InvalidInstanceId.NotFound", f"The instance `{instance_id}` does not exist.")
    return store.instances[instance_id]


def _check_ids(ids: Sequence[str]) -> None:
    if len(ids) > MAXIMUM_IDS:
        raise ApiError("InvalidParameterValue.LimitExceeded", f"More than {MAXIMUM_IDS} instance ids.")
    for name in ids:
        if not INSTANCE_ID.fullmatch(name):
            raise ApiError("InvalidInstanceId.Malformed", f"The instance id `{name}` is malformed.")


def _stop_type(call: Call, deprecated: str, both_given: str) -> str:
    if deprecated in call.parameters and "StopType" in call.parameters:
        raise ApiError(both_given, f"`{deprecated}` and `StopType` cannot be given together.")
    if call.get(deprecated):
        return "SOFT_FIRST"
    return _choice(call, "StopType", ("SOFT", "HARD", "SOFT_FIRST"), "SOFT")


def _choice(call: Call, name: str, allowed: tuple[str, ...], default: str) -> str:
    value: str = call.get(name, default)
    if value not in allowed:
        raise ApiError("InvalidParameterValue", f"The value `{value}` of `{name}` is none of {', '.join(allowed)}.")
    return value


def power_off(cloud: Cloud, instance_id: str, how: str) -> None:
    """Switch a machine off as a StopType says. Blocks; raises HypervisorError."""
    if how != "SOFT_FIRST":
        cloud.hypervisor.stop(instance_id, how == "HARD")
        return
    try:
        cloud.hypervisor.stop(instance_id, False)
    except HypervisorError:
        cloud.hypervisor.stop(instance_id, True)


def _reboot(cloud: Cloud, instance_id: str, how: str) -> None:
    try:
        cloud.hypervisor.reboot(instance_id)
    except HypervisorError:
        if how != "SOFT_FIRST":
            raise
        cloud.hypervisor.stop(instance_id, True)
        cloud.hypervisor.start(instance_id)


def _set_stop_charging(store: Store, instance_id: str, mode: str) -> None:
    with store.changing():
        store.instances[instance_id].stop_charging_mode = mode


def _isolate(cloud: Cloud, instance_id: str) -> str:
    if cloud.hypervisor.is_running(instance_id):
        power_off(cloud, instance_id, "SOFT_FIRST")
    with cloud.store.changing():
        cloud.store.instances[instance_id].isolated_source = "MANMADE"
    return "SHUTDOWN"


def _destroy(cloud: Cloud, instance_id: str) -> None:
    started = time.monotonic()
    cloud.hypervisor.destroy(instance_id)
    with cloud.store.reading():
        disks = [cloud.store.disks[name] for name in cloud.store.instances[instance_id].disk_ids]
    doomed = [disk.disk_id for disk in disks if disk.usage == "SYSTEM_DISK" or disk.delete_with_instance]
    for disk_id in doomed:
        cloud.hypervisor.delete_disk(disk_id)
    cloud.transitions.pause(started)
    with cloud.store.changing():
        del cloud.store.instances[instance_id]
        for disk in disks:
            if disk.disk_id in doomed:
                del cloud.store.disks[disk.disk_id]
            else:
                disk.state, disk.instance_id, disk.last_instance_id = "UNATTACHED", None, instance_id


def _instance(store: Store, item: Instance) -> JsonObject:
    site = store.site
    system = store.disks[item.system_disk_id]
    return {
        "Placement": {"Zone": item.zone, "ProjectId": 0},
        "InstanceId": item.instance_id,
        "InstanceType": item.instance_type,
        "CPU": item.cpu,
        "Memory": item.memory_gb,
        "RestrictState": item.restrict_state,
        "InstanceName": item.name,
        "InstanceChargeType": item.charge_type,
        "SystemDisk": {"DiskType": system.disk_type, "DiskId": system.disk_id, "DiskSize": system.size_gb},
        "DataDisks": [_data_disk(store.disks[name]) for name in item.data_disk_ids],
        "PrivateIpAddresses": item.private_addresses,
        "PublicIpAddresses": item.public_addresses or None,
        "InternetAccessible": {
            "InternetChargeType": "TRAFFIC_POSTPAID_BY_HOUR",
            "InternetMaxBandwidthOut": item.bandwidth_out,
        },
        "VirtualPrivateCloud": {"VpcId": site.vpc_id, "SubnetId": site.subnet_id, "AsVpcGateway": False},
        "ImageId": item.image_id,
        "RenewFlag": item.renew_flag,
        "CreatedTime": item.created,
        "ExpiredTime": item.expired,
        "OsName": item.os_name,
        "SecurityGroupIds": item.security_group_ids,
        "LoginSettings": {},
        "InstanceState": item.state,
        "Tags": [{"Key": key, "Value": value} for key, value in item.tags.items()],
        "StopChargingMode": item.stop_charging_mode,
        "Uuid": item.uuid,
        "LatestOperation": item.latest_operation,
        "LatestOperationState": item.latest_operation_state,
        "LatestOperationRequestId": item.latest_operation_request_id,
        "LatestOperationErrorMsg": item.latest_operation_error,
        "DisasterRecoverGroupId": "",
        "IPv6Addresses": None,
        "IsolatedSource": item.isolated_source,
        "LicenseType": "TencentCloud",
        "DisableApiTermination": item.disable_api_termination,
        "HostName": item.host_name,
        "DefaultLoginUser": "root",
        "DefaultLoginPort": 22,
    }


def _data_disk(disk: Disk) -> JsonObject:
    return {
        "DiskId": disk.disk_id,
        "DiskType": disk.disk_type,
        "DiskSize": disk.size_gb,
        "DeleteWithInstance": disk.delete_with_instance,
        "Encrypt": False,
    }
