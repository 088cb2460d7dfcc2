#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_instance
short_description: Create the target instance of a source
description:
  - Creates one CVM instance for one source, with disks as large as the source's, and waits until it runs.
  - Never makes two. The instance carries the tags C(fleetlift-source) and C(fleetlift-migration), by which it is found
    again, and the request a C(ClientToken) made of them, by which the cloud answers a repeated request with the same
    instance, so that a run that was cut off between the request and its answer can simply be repeated.
  - In check mode the cloud is asked with C(DryRun), which checks parameters, permissions, stock and balance and creates
    nothing.
  - It does not remove instances; that is for people.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.attributes
  - fleetlift.cvm.cloud
options:
  state:
    description:
      - The instance is there.
    type: str
    choices: [present]
    default: present
  source:
    description:
      - Name of the source.
    type: str
    required: true
  migration:
    description:
      - Name of the migration. Together with O(source) it is the natural key of the instance.
    type: str
    required: true
  source_facts:
    description:
      - The facts that M(fleetlift.cvm.preflight) returned for the source; its disks say how large the target's must be.
    type: dict
    required: true
  disks:
    description:
      - Which disk of the source becomes which disk of the target.
    type: list
    elements: dict
    required: true
    suboptions:
      source:
        description:
          - Path or serial of a disk of the source.
        type: str
        required: true
      target:
        description:
          - V(system), V(data1), V(data2) and so on.
        type: str
        required: true
  zone:
    description:
      - Zone of the instance, such as V(ap-guangzhou-3).
    type: str
    required: true
  instance_type:
    description:
      - Its type, such as V(S5.MEDIUM4). It must be x86, since ARM instances have no rescue mode.
    type: str
    required: true
  image_id:
    description:
      - The image it is made from. Nothing of it remains after the migration.
    type: str
    required: true
  vpc_id:
    description:
      - Its VPC, the default one if not set.
    type: str
  subnet_id:
    description:
      - Its subnet.
    type: str
  security_groups:
    description:
      - Ids of its security groups, the first goes first.
    type: list
    elements: str
    default: []
  charge_type:
    description:
      - How it is paid for.
    type: str
    choices: [POSTPAID_BY_HOUR, PREPAID]
    default: POSTPAID_BY_HOUR
  period:
    description:
      - Months to pay for in advance. Required with O(charge_type=PREPAID).
    type: int
  system_disk_type:
    description:
      - The API's C(DiskType) of the system disk.
    type: str
  data_disk_type:
    description:
      - The API's C(DiskType) of the data disks.
    type: str
  bandwidth_out:
    description:
      - Limit of its outgoing internet bandwidth in Mbit/s. With V(0) it has no public address.
    type: int
    default: 0
  instance_name:
    description:
      - Its name in the console, the one of O(source) if not set.
    type: str
  tags:
    description:
      - More tags for it.
    type: dict
    default: {}
  attempt:
    description:
      - Raise it by one to have another instance created after the one of an earlier run was terminated and the cloud
        still answers with that.
    type: int
    default: 1
  wait:
    description:
      - Whether to wait until the instance runs.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait for that.
    type: int
    default: 600
seealso:
  - module: fleetlift.cvm.target_info
notes:
  - The price is not asked for in advance; what the cloud says about price, balance and stock is in the finding.
"""

EXAMPLES = r"""
- name: Create the target of this source
  fleetlift.cvm.target_instance:
    source: "{{ inventory_hostname }}"
    migration: "{{ fleetlift_migration }}"
    source_facts: "{{ preflight.facts }}"
    disks:
      - source: /dev/sda
        target: system
    zone: ap-guangzhou-3
    instance_type: S5.MEDIUM4
    image_id: img-xxxxxxxx
    security_groups: [sg-xxxxxxxx]
  delegate_to: localhost
  register: created
"""

RETURN = r"""
instance_id:
  description: The instance; empty in check mode when there is none yet.
  returned: success
  type: str
  sample: ins-webtgt01
target:
  description: The instance as M(fleetlift.cvm.target_info) returns it; in check mode what it would be.
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
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.provision import Provision, Shape, disk_sizes
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import mapped_sizes


def run(instances: Instances, client: CloudClient, params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The module's result. Raises ``Refusal``."""
    shape = {name: params[name] for name in Shape.__dataclass_fields__ if name in params}
    shape["security_groups"] = tuple(params["security_groups"])
    shape["tags"] = {str(key): str(value) for key, value in params["tags"].items()}
    sizes = disk_sizes(mapped_sizes(params["source"], params["source_facts"], params["disks"]))
    waiter = Waiter(params["wait_timeout"]) if params["wait"] and not check_mode else DummyWaiter()
    provision = Provision(client, instances, migration=params["migration"], source=params["source"], waiter=waiter)
    outcome = provision.ensure(Shape(**shape), sizes, attempt=params["attempt"], dry_run=check_mode)
    record = outcome.target.record()
    return {
        "changed": outcome.changed,
        "instance_id": "" if outcome.changed and check_mode else outcome.target.instance_id,
        "target": record,
        "diff": {"before": {} if outcome.changed else record, "after": record},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "state": {"type": "str", "choices": ["present"], "default": "present"},
            "source": {"type": "str", "required": True},
            "migration": {"type": "str", "required": True},
            "source_facts": {"type": "dict", "required": True},
            "disks": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "source": {"type": "str", "required": True},
                    "target": {"type": "str", "required": True},
                },
            },
            "zone": {"type": "str", "required": True},
            "instance_type": {"type": "str", "required": True},
            "image_id": {"type": "str", "required": True},
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
            "attempt": {"type": "int", "default": 1},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 600},
        },
        required_if=[("charge_type", "PREPAID", ["period"])],
        required_together=[("vpc_id", "subnet_id")],
        supports_check_mode=True,
    )
    with reported(module):
        instances, client = instances_for(module)
        result = run(instances, client, module.params, check_mode=module.check_mode)
        module.exit_json(request_ids=client.request_ids, **result)


if __name__ == "__main__":
    main()
