#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_snapshot
short_description: Keep what a target's disks hold, and put it back
description:
  - With O(state=present) each disk of the instance has a snapshot of this migration. The instance may run meanwhile.
  - With O(state=restored) the disks hold again what they held then. The instance must be stopped; elastic disks are
    detached for it and attached again. This cannot be compared beforehand, so it always reports a change.
  - With O(state=absent) the migration's snapshots are gone.
  - A snapshot is found again by its name, which is made from O(migration), and by its disk.
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
  migration:
    description:
      - The migration whose snapshots these are.
    type: str
    required: true
  disk_ids:
    description:
      - The disks to keep. All of the instance's when empty.
      - With O(state=restored) and O(state=absent) every snapshot of the migration counts.
    type: list
    elements: str
    default: []
  state:
    description:
      - Whether the snapshots exist, do not exist, or were put back.
    type: str
    choices: [present, absent, restored]
    default: present
  wait:
    description:
      - Whether to wait until new snapshots are complete. The other states always wait.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds that everything together may take.
    type: int
    default: 3600
notes:
  - A snapshot of a running instance holds what had reached its disks, as after a power cut.
  - Snapshots cost money until they are deleted, and count against the account's quota.
seealso:
  - module: fleetlift.cvm.target_snapshot_info
  - module: fleetlift.cvm.target_landing
"""

EXAMPLES = r"""
- name: Keep what the target's disks hold before they are overwritten
  fleetlift.cvm.target_snapshot:
    instance_id: ins-webtgt01
    migration: web1
  delegate_to: localhost

- name: Put it back
  fleetlift.cvm.target_snapshot:
    instance_id: ins-webtgt01
    migration: web1
    state: restored
  delegate_to: localhost
"""

RETURN = r"""
snapshots:
  description: The migration's snapshots after the task; in check mode, those that exist.
  returned: success
  type: list
  elements: dict
  sample:
    - snapshot_id: snap-1a2b3c4d
      disk_id: disk-websys01
      name: fleetlift-web1
      state: NORMAL
      percent: 100
      size_gb: 50
      usage: system
      created: "2026-01-31T12:00:00Z"
disk_ids:
  description: The disks that got a snapshot, lost one or were put back.
  returned: success
  type: list
  elements: str
  sample: [disk-websys01]
waited_seconds:
  description: Seconds from the first look to the result.
  returned: success
  type: float
  sample: 31.4
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
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.snapshots import Snapshots, snapshot_name
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter


def run(snapshots: Snapshots, params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The module's result. Raises ``Refusal``."""
    before = snapshots.found()
    if params["state"] == "present":
        wanted = snapshots.disk_ids(params["disk_ids"])
        concerned = snapshots.missing(wanted)
        if not check_mode:
            snapshots.take(wanted)
    elif params["state"] == "restored":
        chosen = snapshots.restorable()
        concerned = [item.disk_id for item in chosen]
        if not check_mode:
            snapshots.restore(chosen)
    else:
        concerned = [item.disk_id for item in before]
        if not check_mode:
            snapshots.delete(before)
    after = before if check_mode else snapshots.found()
    return {
        "changed": bool(concerned),
        "snapshots": [item.record() for item in after],
        "disk_ids": concerned,
        "diff": {"before": {"snapshots": _ids(before)}, "after": {"snapshots": _ids(after)}},
    }


def _ids(snapshots: list[Any]) -> list[str]:
    return [item.snapshot_id for item in snapshots]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "instance_id": {"type": "str", "required": True},
            "migration": {"type": "str", "required": True},
            "disk_ids": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent", "restored"], "default": "present"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    params = module.params
    with reported(module):
        instances, client = instances_for(module)
        patient = params["wait"] or params["state"] != "present"
        waiter = Waiter(params["wait_timeout"]) if patient else DummyWaiter()
        name = snapshot_name(params["migration"])
        snapshots = Snapshots(client, instances, params["instance_id"], name, waiter, tell=module.log)
        result = run(snapshots, params, check_mode=module.check_mode)
        module.exit_json(request_ids=client.request_ids, waited_seconds=round(waiter.waited, 1), **result)


if __name__ == "__main__":
    main()
