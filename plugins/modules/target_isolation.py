#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_isolation
short_description: Cut a stopped target off from everybody but the controller
description:
  - With O(state=present) the instance has one security group, which lets the controller in, nobody else, and nothing
    out. A copy of a server that still runs can be started behind it.
  - With O(state=absent) the instance has the security groups again that it had before, and the group is deleted.
  - Both are done only while the instance is off, so that a copy is never reachable beside its source.
  - What the instance had before is kept in the description of the group, so that any controller can undo it.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.cloud
  - fleetlift.cvm.attributes
attributes:
  diff_mode:
    support: full
options:
  instance_id:
    description:
      - The instance.
    type: str
    required: true
  state:
    description:
      - Whether the instance is isolated.
    type: str
    choices: [present, absent]
    default: present
  controllers:
    description:
      - Addresses or networks from which the controller reaches the instance, as the instance sees them.
      - When empty, the address with which this machine reaches O(address). Behind NAT that is the wrong one.
    type: list
    elements: str
    default: []
  address:
    description:
      - Where the controller reaches the instance. Required with O(state=present) when O(controllers) is empty.
    type: str
  security_groups:
    description:
      - The groups that O(state=absent) gives back, in their order, instead of those that are kept.
    type: list
    elements: str
    default: []
  wait_timeout:
    description:
      - Seconds to wait until a change is in force.
    type: int
    default: 300
notes:
  - Security groups filter connections. What the platform itself does for an instance, such as DHCP, goes on.
seealso:
  - module: fleetlift.cvm.target_landing
"""

EXAMPLES = r"""
- name: Nobody but the controller may reach the copy
  fleetlift.cvm.target_isolation:
    instance_id: ins-webtgt01
    controllers: [198.51.100.7]
  delegate_to: localhost

- name: Give the instance its own security groups back
  fleetlift.cvm.target_isolation:
    instance_id: ins-webtgt01
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
security_groups:
  description: The security groups of the instance after the task; in check mode, those it has.
  returned: success
  type: list
  elements: str
  sample: [sg-1a2b3c4d]
before:
  description: The security groups that the instance had before it was isolated.
  returned: success
  type: list
  elements: str
  sample: [sg-fleetlift]
rules:
  description: The rules of the isolation group by direction, null when there is none.
  returned: success
  type: dict
  sample: {Ingress: [[ACCEPT, ALL, 198.51.100.7/32]], Egress: []}
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
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.isolation import Isolation, own_address, wanted_rules
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import Waiter


def run(isolation: Isolation, params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The module's result. Raises ``Refusal``."""
    target, group = isolation.observe(), isolation.group()
    before = list(group.before if group else target.security_groups)
    if params["state"] == "present":
        wanted = wanted_rules(params["controllers"])
        isolated = group is not None and isolation.is_isolated(target, group)
        if not isolated:
            isolation.require_off(target)
        changed = not isolated or (group is not None and isolation.rules_of(group) != wanted)
        if changed and not check_mode:
            group = isolation.isolate(params["controllers"])
            before = list(group.before)
    else:
        changed = group is not None
        if group is not None and group.group_id in target.security_groups:
            isolation.require_off(target)
            before = isolation.before(group, params["security_groups"])
        if changed and not check_mode:
            before = isolation.release(params["security_groups"])
            group = None
    now = list(target.security_groups) if check_mode else list(isolation.observe().security_groups)
    return {
        "changed": changed,
        "security_groups": now,
        "before": before,
        "rules": isolation.rules_of(group) if group else None,
        "diff": {"before": {"security_groups": list(target.security_groups)}, "after": {"security_groups": now}},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "instance_id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "controllers": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str"},
            "security_groups": {"type": "list", "elements": "str", "default": []},
            "wait_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "present" and not params["controllers"] and not params["address"]:
        module.fail_json(msg="state is present but all of the following are missing: controllers, address")
    with reported(module):
        if not params["controllers"] and params["address"]:
            params["controllers"] = [own_address(params["address"])]
        instances, client = instances_for(module)
        isolation = Isolation(client, instances, params["instance_id"], Waiter(params["wait_timeout"]))
        result = run(isolation, params, check_mode=module.check_mode)
        module.exit_json(request_ids=client.request_ids, **result)


if __name__ == "__main__":
    main()
