# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CVM ResetInstance: an instance gets a system disk with a fresh image.

The vendor's page does not say which InstanceState is shown meanwhile: here it stays as it was while
LatestOperationState is OPERATING. An instance that was off is started too, as the console does.
"""

from __future__ import annotations

from functools import partial

from lab.cloud.actions import Call, action
from lab.cloud.cloud import Cloud
from lab.cloud.cvm import admitted, check_password, power_off
from lab.cloud.errors import ApiError
from lab.cloud.images import check_disk, find_image
from lab.cloud.parameters import JsonObject

# What the lab's cloud can honour. Anything else is refused rather than ignored.
_OFFERED = frozenset({"InstanceId", "ImageId", "SystemDisk", "LoginSettings", "EnhancedService"})
# The types whose instances can change their operating system, in the action's description.
_DISK_TYPES = frozenset({"CLOUD_BASIC", "CLOUD_PREMIUM", "CLOUD_SSD", "CLOUD_BSSD"})


@action("cvm")
def reset_instance(cloud: Cloud, call: Call) -> JsonObject:
    """The system disk is formatted and gets the image, the instance's own by default; data disks are left alone."""
    for name in sorted(set(call.parameters) - _OFFERED):
        if call.parameters[name]:
            raise ApiError("UnsupportedOperation", f"The lab's cloud does not offer `{name}`.")
    login = call.get("LoginSettings", {})
    if login.get("KeyIds"):
        raise ApiError("InvalidParameterValue.KeyPairNotFound", "The lab's cloud has no key pairs.")
    password = login.get("Password")
    if password is not None:
        check_password(password)
    with cloud.store.changing():
        instance = admitted(cloud.store, [call.parameters["InstanceId"]], call.action)[0]
        if instance.stop_charging_mode == "STOP_CHARGING":
            raise ApiError(
                "UnsupportedOperation.StoppedModeStopCharging",
                f"`{instance.instance_id}` was stopped without charging, its resources are released.",
            )
        disk = cloud.store.disks[instance.system_disk_id]
        if disk.disk_type not in _DISK_TYPES:
            raise ApiError("UnsupportedOperation", f"The system disk is of the type `{disk.disk_type}`.")
        wanted = call.get("SystemDisk", {})
        if wanted.get("DiskType", disk.disk_type) != disk.disk_type:
            raise ApiError("InvalidParameterValue", "A reset does not change the type of the system disk.")
        size = wanted.get("DiskSize", disk.size_gb)
        if size < disk.size_gb:
            raise ApiError(
                "InvalidParameterValue", f"`SystemDisk.DiskSize` is less than the {disk.size_gb} GiB it has."
            )
        image_id = call.get("ImageId", instance.image_id)
        image = find_image(cloud.store, image_id)
        check_disk(image, size)
        instance.image_id, instance.os_name, disk.size_gb = image_id, image.os_name, size
        cloud.transitions.begin([instance], call.action, call.request_id, partial(_reset, cloud, password))
    return {}


def _reset(cloud: Cloud, password: str | None, instance_id: str) -> str:
    if cloud.hypervisor.is_running(instance_id):
        power_off(cloud, instance_id, "SOFT_FIRST")
    with cloud.store.reading():
        spec = cloud.spec(cloud.store.instances[instance_id], password)
    cloud.hypervisor.reinstall(spec)
    cloud.hypervisor.start(instance_id)
    with cloud.store.changing():
        cloud.store.instances[instance_id].stop_charging_mode = "NOT_APPLICABLE"
    return "RUNNING"
