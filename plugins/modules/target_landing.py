#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_landing
short_description: Put a target instance into rescue mode, take it out, or stop it
description:
  - The landing is a system in memory from which the disks of a target instance are written. On Tencent Cloud it is the
    instance's rescue mode.
  - With O(state=present) the instance enters rescue mode and the module waits until SSH answers there.
  - With O(state=absent) the instance leaves rescue mode, which leaves it stopped, and is started.
  - With O(state=stopped) the instance is off, whether it was in rescue mode or running.
  - All continue what an interrupted run left half-done, and wait for an operation of somebody else to end first.
  - An instance that has expired, is isolated, is an ARM machine, is being terminated or is in the vendor's own online
    migration is refused before anything is changed.
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
      - What the instance is to be, in rescue mode, running from its own disk, or off.
    type: str
    choices: [present, absent, stopped]
    default: present
  username:
    description:
      - The user of the rescue system.
    type: str
    default: root
  password:
    description:
      - Password of O(username) in the rescue system, 8 to 30 characters of at least two kinds.
      - Required when the instance has to enter rescue mode. An instance that is there already keeps the password that
        it entered with.
    type: str
  stop_type:
    description:
      - How a running instance is stopped.
      - V(soft_first) stops it the hard way when it does not stop by itself.
    type: str
    choices: [soft, hard, soft_first]
    default: soft_first
  wait:
    description:
      - Whether to wait for the result.
      - If V(false), the module takes the next step and returns; running it again takes the one after.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait for the result, SSH included.
    type: int
    default: 900
  settle_timeout:
    description:
      - Seconds, within O(wait_timeout), to wait for an operation of somebody else to end before anything is changed.
    type: int
    default: 300
  ssh_port:
    description:
      - Port of the SSH server of the rescue system.
    type: int
    default: 22
  address:
    description:
      - Where to reach the rescue system. V(public) and V(private) are the instance's first address of that kind;
        V(auto) is the public one if there is one; anything else is taken as the address itself.
    type: str
    default: auto
seealso:
  - module: fleetlift.cvm.target_info
"""

EXAMPLES = r"""
- name: Put the target into rescue mode
  fleetlift.cvm.target_landing:
    instance_id: "{{ target_instance_id }}"
    password: "{{ landing_password }}"
  delegate_to: localhost
  register: landing

- name: Start the migrated server
  fleetlift.cvm.target_landing:
    instance_id: "{{ target_instance_id }}"
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
instance_id:
  description: The instance.
  returned: success
  type: str
  sample: ins-webtgt01
state:
  description: The API's own C(InstanceState) at the end; in check mode, the state that it would end in.
  returned: success
  type: str
  sample: RESCUE_MODE
previous_state:
  description: C(InstanceState) at the beginning.
  returned: success
  type: str
  sample: RUNNING
address:
  description: The address at which the instance is reached, null if it has none and none was needed.
  returned: success
  type: str
  sample: 203.0.113.11
port:
  description: The SSH port.
  returned: success
  type: int
  sample: 22
waited_seconds:
  description: Seconds from the first look to the result.
  returned: success
  type: float
  sample: 41.7
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
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import (
    Credentials,
    Goal,
    Landing,
    Outcome,
    address_of,
    predict,
    wait_for_ssh,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.ssh_banner import read_banner


def run(instances: Instances, params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The module's result. Raises ``Refusal``."""
    goal = Goal[params["state"].upper()]
    credentials = Credentials(params["username"], params["password"], params["stop_type"].upper())
    if check_mode:
        outcome = predict(goal, instances.observe(params["instance_id"]), credentials)
        return result_of(outcome, goal.value, params, waited=0.0)
    waiter = Waiter(params["wait_timeout"]) if params["wait"] else DummyWaiter()
    landing = Landing(
        instances,
        params["instance_id"],
        waiter,
        credentials=credentials,
        settle_timeout=params["settle_timeout"],
    )
    outcome = landing.reach(goal)
    if goal is Goal.PRESENT and waiter.patient:
        address = address_of(outcome.target, params["address"])
        wait_for_ssh(waiter, params["instance_id"], address, params["ssh_port"], read_banner)
    return result_of(outcome, outcome.target.state, params, waited=waiter.waited)


def result_of(outcome: Outcome, state: str, params: dict[str, Any], *, waited: float) -> dict[str, Any]:
    return {
        "changed": outcome.changed,
        "instance_id": outcome.target.instance_id,
        "state": state,
        "previous_state": outcome.previous_state,
        "address": _address_if_any(outcome, params["address"]),
        "port": params["ssh_port"],
        "waited_seconds": round(waited, 1),
        "diff": {"before": {"state": outcome.previous_state}, "after": {"state": state}},
    }


def _address_if_any(outcome: Outcome, preference: str) -> str | None:
    try:
        return address_of(outcome.target, preference)
    except Refusal:
        return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "instance_id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "stopped"], "default": "present"},
            "username": {"type": "str", "default": "root"},
            "password": {"type": "str", "no_log": True},
            "stop_type": {"type": "str", "choices": ["soft", "hard", "soft_first"], "default": "soft_first"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 900},
            "settle_timeout": {"type": "int", "default": 300},
            "ssh_port": {"type": "int", "default": 22},
            "address": {"type": "str", "default": "auto"},
        },
        supports_check_mode=True,
    )
    with reported(module):
        instances, client = instances_for(module)
        result = run(instances, module.params, check_mode=module.check_mode)
        module.exit_json(request_ids=client.request_ids, **result)


if __name__ == "__main__":
    main()
