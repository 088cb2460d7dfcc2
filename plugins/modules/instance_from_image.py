#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_from_image
short_description: Have an instance run from an imported image
version_added: 0.1.0
description:
  - Creates an instance from an image, or with O(instance_id) puts the image onto the system disk of one that exists
    (ResetInstance), and waits until it runs.
  - Never makes two. A created instance carries the tags C(fleetlift-source) and C(fleetlift-migration), by which it is
    found again, and its request a C(ClientToken).
  - Never resets twice. An instance whose C(ImageId) is the image already is left alone.
  - The image's own accounts stay as they are (C(KeepImageLogin)).
  - In check mode the cloud is asked with C(DryRun) where it knows that, and nothing is changed.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cloud
  - fleetlift.cvm.attributes
options:
  source:
    description: Name of the server that was exported.
    type: str
    required: true
  migration:
    description: Name of the migration. Together with O(source) it is the natural key of a created instance.
    type: str
    required: true
  state:
    description:
      - With V(present) the instance runs from the image.
      - With V(found) nothing is changed, and RV(instance_id) is that of the instance that an earlier run created. With
        O(instance_id) it is that one, and one that cannot be reset (expired, isolated) is refused.
    type: str
    choices: [present, found]
    default: present
  image_id:
    description: The image. Required when O(state=present).
    type: str
  instance_id:
    description: An instance to reset. What is on its system disk is lost; its data disks stay.
    type: str
  zone:
    description: Zone of the instance to create, such as V(ap-guangzhou-3). Required without O(instance_id).
    type: str
  instance_type:
    description: Its type, such as V(S5.MEDIUM4). Required without O(instance_id).
    type: str
  system_disk_size:
    description: The size of its system disk in GiB. That of the image in steps of 10, at least 20, if not set.
    type: int
  data_disks:
    description: Its data disks, in their order.
    type: list
    elements: dict
    default: []
    suboptions:
      size_gb:
        description: The size in GiB.
        type: int
        required: true
      snapshot_id:
        description: What it is made of, from C(data_snapshots) of M(fleetlift.cvm.image_import). Blank if not set.
        type: str
  vpc_id:
    description: Its VPC, the default one if not set.
    type: str
  subnet_id:
    description: Its subnet.
    type: str
  security_groups:
    description: Ids of its security groups.
    type: list
    elements: str
    default: []
  charge_type:
    description: How it is paid for.
    type: str
    choices: [POSTPAID_BY_HOUR, PREPAID]
    default: POSTPAID_BY_HOUR
  period:
    description: Months to pay for in advance. Required with O(charge_type=PREPAID).
    type: int
  system_disk_type:
    description: The API's C(DiskType) of the system disk.
    type: str
  data_disk_type:
    description: The API's C(DiskType) of the data disks.
    type: str
  bandwidth_out:
    description: Limit of its outgoing internet bandwidth in Mbit/s. With V(0) it has no public address.
    type: int
    default: 0
  instance_name:
    description: Its name in the console, the one of O(source) if not set.
    type: str
  tags:
    description: More tags for it.
    type: dict
    default: {}
  address:
    description:
      - Where to reach the instance. V(public) and V(private) are its first address of that kind; V(auto) is the public
        one if there is one; anything else is taken as the address itself.
    type: str
    default: auto
  wait:
    description: Whether to wait until the instance runs.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait for that.
    type: int
    default: 1800
seealso:
  - module: fleetlift.cvm.image_import
  - module: fleetlift.cvm.target_instance
"""

EXAMPLES = r"""
- name: Create an instance from the imported image
  fleetlift.cvm.instance_from_image:
    source: web1
    migration: web1
    image_id: "{{ imported.image.image_id }}"
    zone: ap-guangzhou-3
    instance_type: S5.MEDIUM4
    security_groups: [sg-xxxxxxxx]
  delegate_to: localhost

- name: Put the image onto an instance that is there
  fleetlift.cvm.instance_from_image:
    source: web1
    migration: web1
    image_id: "{{ imported.image.image_id }}"
    instance_id: ins-xxxxxxxx
  delegate_to: localhost
"""

RETURN = r"""
instance_id:
  description: The instance; empty when there is none, or in check mode none yet.
  returned: success
  type: str
  sample: ins-webtgt01
address:
  description: Where to reach it; empty when it has no address.
  returned: success
  type: str
target:
  description: The instance as M(fleetlift.cvm.target_info) returns it; null when there is none.
  returned: success
  type: dict
request_ids:
  description: Ids of the API requests, for the vendor's support.
  returned: success
  type: list
  elements: str
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.images import Image, Images
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import address_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.provision import GIB, Provision, Shape, disk_sizes
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.reinstall import Reinstall, check_fits
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Target, standing_refusals
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal, refuse


def run(instances: Instances, client: CloudClient, params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The module's result. Raises ``Refusal``."""
    waiter = Waiter(params["wait_timeout"]) if params["wait"] and not check_mode else DummyWaiter()
    provision = Provision(client, instances, migration=params["migration"], source=params["source"], waiter=waiter)
    if params["state"] == "found":
        found = usable(instances, params["instance_id"]) if params["instance_id"] else provision.find()
        return answer(found, params, changed=False)
    image = image_of(Images(client), params["image_id"])
    if params["instance_id"]:
        reinstall = Reinstall(client, instances, params["instance_id"], waiter)
        reinstalled = reinstall.ensure(image, dry_run=check_mode)
        return answer(reinstalled.target, params, changed=reinstalled.changed)
    sizes = [system_size(params, image), *(disk["size_gb"] for disk in params["data_disks"])]
    made = provision.ensure(shape_of(params), sizes, dry_run=check_mode)
    return answer(made.target, params, changed=made.changed)


def usable(instances: Instances, instance_id: str) -> Target:
    """The instance to reset, unless nothing could be done with it."""
    (target,) = instances.by_ids([instance_id])
    for finding in standing_refusals(target):
        raise Refusal(finding)
    return target


def image_of(images: Images, image_id: str) -> Image:
    """The image, which has to be ready."""
    found = images.by_ids([image_id])
    if not found or found[0].state != "NORMAL":
        state = found[0].state if found else "missing"
        raise refuse(
            "IMAGE_NOT_READY",
            image_id,
            f"The image {image_id} is {state}.",
            "Import it with fleetlift.cvm.image_import, and use the id that returns.",
            state=state,
        )
    return found[0]


def system_size(params: dict[str, Any], image: Image) -> int:
    """The size of the system disk to create, in GiB."""
    if params["system_disk_size"] is None:
        return disk_sizes({"system": image.size_gb * GIB})[0]
    check_fits(image, params["source"], params["system_disk_size"])
    return int(params["system_disk_size"])


def shape_of(params: dict[str, Any]) -> Shape:
    """What to create, but for the sizes of its disks."""
    given = {name: params[name] for name in Shape.__dataclass_fields__ if name in params}
    given["instance_name"] = params["instance_name"] or ""
    given["security_groups"] = tuple(params["security_groups"])
    given["tags"] = {str(key): str(value) for key, value in params["tags"].items()}
    snapshots = tuple(disk["snapshot_id"] for disk in params["data_disks"])
    return Shape(**given, keep_image_login=True, data_snapshots=snapshots)


def answer(target: Target | None, params: dict[str, Any], *, changed: bool) -> dict[str, Any]:
    address = ""
    if target is not None:
        try:
            address = address_of(target, params["address"])
        except Refusal:
            # Without one it still runs, and whoever needs one says so.
            address = ""
    return {
        "changed": changed,
        # One that is only planned has no id yet.
        "instance_id": target.instance_id if target and target.instance_id.startswith("ins-") else "",
        "address": address,
        "target": target.record() if target else None,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "source": {"type": "str", "required": True},
            "migration": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "found"], "default": "present"},
            "image_id": {"type": "str"},
            "instance_id": {"type": "str"},
            "zone": {"type": "str"},
            "instance_type": {"type": "str"},
            "system_disk_size": {"type": "int"},
            "data_disks": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"size_gb": {"type": "int", "required": True}, "snapshot_id": {"type": "str"}},
            },
            "vpc_id": {"type": "str"},
            "subnet_id": {"type": "str"},
            "security_groups": {"type": "list", "elements": "str", "default": []},
            "charge_type": {"type": "str", "choices": ["POSTPAID_BY_HOUR", "PREPAID"], "default": "POSTPAID_BY_HOUR"},
            "period": {"type": "int"},
            "system_disk_type": {"type": "str"},
            "data_disk_type": {"type": "str"},
            "bandwidth_out": {"type": "int", "default": 0},
            "instance_name": {"type": "str"},
            "tags": {"type": "dict", "default": {}},
            "address": {"type": "str", "default": "auto"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 1800},
        },
        required_if=[("state", "present", ["image_id"]), ("charge_type", "PREPAID", ["period"])],
        required_together=[("vpc_id", "subnet_id"), ("zone", "instance_type")],
        supports_check_mode=True,
    )
    with reported(module):
        if module.params["state"] == "present" and not (module.params["instance_id"] or module.params["zone"]):
            raise refuse(
                "TARGET_SHAPE_INVALID",
                module.params["source"],
                "Neither an instance to reset nor the zone and type of one to create is given.",
                "Set instance_id, or zone and instance_type.",
            )
        instances, client = instances_for(module)
        result = run(instances, client, module.params, check_mode=module.check_mode)
        module.exit_json(request_ids=client.request_ids, **result)


if __name__ == "__main__":
    main()
