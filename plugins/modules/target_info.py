#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_info
short_description: Read target instances of Tencent Cloud
description:
  - Reads CVM instances with their disks and security groups, in the words of this collection.
  - Changes nothing. Up to 100 instances are read with one request each for instances and disks, and one for each
    distinct security group.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.cloud
  - fleetlift.cvm.attributes
options:
  instance_ids:
    description:
      - The instances to read. The result keeps this order.
      - What becomes of an id that does not exist in the region, says O(missing).
    type: list
    elements: str
  missing:
    description:
      - Whether an instance of O(instance_ids) that does not exist is an V(error), or is left out of RV(targets).
    type: str
    choices: [error, skip]
    default: error
  names:
    description:
      - Read the instances that have one of these names. A name that no instance has is not an error.
    type: list
    elements: str
  filters:
    description:
      - Read the instances that satisfy every one of these filters of the API's C(DescribeInstances), such as V(zone)
        or V(tag:wave). The value of each is a list, any of which may match.
      - Together with O(names), both apply.
    type: dict
  complete:
    description:
      - Whether the states of the disks and the rules of the security groups are read as well, with requests of their
        own. Only for O(names) and O(filters).
    type: bool
    default: true
  query:
    description:
      - A JMESPath expression, applied to RV(targets). Its result is RV(result).
      - Needs the Python library C(jmespath) on the controller.
    type: str
"""

EXAMPLES = r"""
- name: Read the target of each source
  fleetlift.cvm.target_info:
    instance_ids:
      - ins-webtgt01
      - ins-dbtgt001
  delegate_to: localhost
  register: info

- name: List the instances of a wave that are not ready
  fleetlift.cvm.target_info:
    filters:
      "tag:wave": ["1"]
    query: "[?state != 'RUNNING'].instance_id"
  delegate_to: localhost
  register: not_ready
"""

RETURN = r"""
targets:
  description: The instances.
  returned: success
  type: list
  elements: dict
  contains:
    instance_id:
      description: Id of the instance.
      type: str
      sample: ins-webtgt01
    name:
      description: Name of the instance.
      type: str
    state:
      description: The API's own C(InstanceState).
      type: str
      sample: RUNNING
    restrict_state:
      description: V(NORMAL), V(EXPIRED) or V(PROTECTIVELY_ISOLATED).
      type: str
    isolated_source:
      description: Why it is isolated, V(NOTISOLATED) if it is not.
      type: str
    stop_charging_mode:
      description: V(STOP_CHARGING) when it was stopped without charging.
      type: str
    latest_operation:
      description: The latest operation on the instance.
      type: dict
      contains:
        name:
          description: The action.
          type: str
        state:
          description: V(SUCCESS), V(OPERATING) or V(FAILED).
          type: str
        error:
          description: Why it failed.
          type: str
        request_id:
          description: The request that started it.
          type: str
    expired_time:
      description: When a prepaid instance expires, in UTC.
      type: str
    charge_type:
      description: How it is paid for.
      type: str
    instance_type:
      description: The instance type.
      type: str
    zone:
      description: Its zone.
      type: str
    region:
      description: Its region.
      type: str
    private_addresses:
      description: Addresses inside its VPC.
      type: list
      elements: str
    public_addresses:
      description: Addresses on the internet.
      type: list
      elements: str
    architecture:
      description: V(x86_64), V(i386) or V(aarch64), derived from the instance type and the name of the system.
      type: str
    cpu:
      description: Number of virtual CPUs.
      type: int
    memory_gb:
      description: Memory in GiB.
      type: int
    image_id:
      description: The image it was made from.
      type: str
    os_name:
      description: The system that the cloud believes is on it.
      type: str
    disks:
      description: Its disks, the system disk first, then the data disks as attached.
      type: list
      elements: dict
      contains:
        disk_id:
          description: Id of the disk, which is also its serial inside the instance.
          type: str
        usage:
          description: V(system) or V(data).
          type: str
        size_gb:
          description: Size in GiB.
          type: int
        size_bytes:
          description: Size in bytes.
          type: int
        order:
          description: 0 for the system disk, then 1 and up.
          type: int
        state:
          description: The API's own C(DiskState), null for a local disk.
          type: str
        type:
          description: The API's own C(DiskType).
          type: str
    security_groups:
      description: Its security groups, the first goes first.
      type: list
      elements: str
    ingress:
      description: The rules for incoming connections in the order in which they apply.
      type: list
      elements: dict
      contains:
        group:
          description: The security group of the rule.
          type: str
        index:
          description: Place of the rule in its group.
          type: int
        action:
          description: V(ACCEPT) or V(DROP).
          type: str
        protocol:
          description: V(TCP), V(UDP), V(ICMP), V(ICMPV6), V(GRE), V(ALL), or V(template) for a port template.
          type: str
        port:
          description: Ports, ranges of them, V(ALL), or the id of a port template.
          type: str
        source:
          description: A network, or the id of an address template or a security group.
          type: str
        description:
          description: What the rule's author wrote.
          type: str
    bandwidth_out_mbps:
      description: Limit of its outgoing internet bandwidth in Mbit/s.
      type: int
missing:
  description: Why each of O(instance_ids) that is not in RV(targets) was not found, by its id.
  returned: success
  type: dict
  sample: {}
result:
  description: What O(query) selected.
  returned: when O(query) is set
  type: raw
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

import traceback
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Target
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Finding, refuse

try:
    import jmespath
except ImportError:
    JMESPATH_IMPORT_ERROR = traceback.format_exc()
else:
    JMESPATH_IMPORT_ERROR = None


def read_targets(instances: Instances, params: dict[str, Any]) -> list[Target]:
    if params["instance_ids"] is not None:
        return instances.by_ids(params["instance_ids"])
    filters = {name: _as_list(values) for name, values in (params["filters"] or {}).items()}
    if params["names"] is not None:
        filters["instance-name"] = params["names"]
    return instances.by_filters(filters, complete=params["complete"])


def _as_list(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else [str(values)]


def select(expression: str, records: list[dict[str, Any]]) -> Any:
    """What the JMESPath *expression* selects from *records*."""
    try:
        return jmespath.search(expression, records)
    except jmespath.exceptions.JMESPathError as error:
        raise refuse(
            "QUERY_INVALID",
            "query",
            f"The query {expression!r} is not valid JMESPath: {error}.",
            "See https://jmespath.org for its grammar.",
        ) from error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "instance_ids": {"type": "list", "elements": "str"},
            "missing": {"type": "str", "choices": ["error", "skip"], "default": "error"},
            "names": {"type": "list", "elements": "str"},
            "filters": {"type": "dict"},
            "complete": {"type": "bool", "default": True},
            "query": {"type": "str"},
        },
        required_one_of=[("instance_ids", "names", "filters")],
        mutually_exclusive=[("instance_ids", "names"), ("instance_ids", "filters")],
        supports_check_mode=True,
    )
    if module.params["query"] and JMESPATH_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("jmespath"), exception=JMESPATH_IMPORT_ERROR)
    with reported(module):
        instances, client = instances_for(module)
        missing: dict[str, Finding] = {}
        if module.params["instance_ids"] is not None and module.params["missing"] == "skip":
            targets, missing = instances.existing(module.params["instance_ids"])
        else:
            targets = read_targets(instances, module.params)
        records = [target.record() for target in targets]
        result = {"result": select(module.params["query"], records)} if module.params["query"] else {}
        module.exit_json(
            changed=False,
            targets=records,
            missing={name: finding.record() for name, finding in missing.items()},
            request_ids=client.request_ids,
            **result,
        )


if __name__ == "__main__":
    main()
