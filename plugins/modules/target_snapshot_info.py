#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: target_snapshot_info
short_description: Read the snapshots that were taken of a target's disks
description:
  - Lists the snapshots of one migration, with their progress. Changes nothing.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.cloud
  - fleetlift.cvm.attributes.read_only
  - fleetlift.cvm.attributes
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
seealso:
  - module: fleetlift.cvm.target_snapshot
"""

EXAMPLES = r"""
- name: How far are the snapshots?
  fleetlift.cvm.target_snapshot_info:
    instance_id: ins-webtgt01
    migration: web1
  delegate_to: localhost
  register: kept
"""

RETURN = r"""
snapshots:
  description: The migration's snapshots, oldest first.
  returned: success
  type: list
  elements: dict
  sample:
    - snapshot_id: snap-1a2b3c4d
      disk_id: disk-websys01
      name: fleetlift-web1
      state: CREATING
      percent: 40
      size_gb: 50
      usage: system
      created: "2026-01-31T12:00:00Z"
complete:
  description: Whether every disk of the instance has a snapshot that is complete.
  returned: success
  type: bool
  sample: false
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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cloud_argument_spec,
    instances_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.snapshots import Snapshots, snapshot_name
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "instance_id": {"type": "str", "required": True},
            "migration": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    with reported(module):
        instances, client = instances_for(module)
        name = snapshot_name(module.params["migration"])
        snapshots = Snapshots(client, instances, module.params["instance_id"], name, DummyWaiter())
        found = snapshots.found()
        kept = {item.disk_id for item in found if item.state == "NORMAL"}
        module.exit_json(
            changed=False,
            snapshots=[item.record() for item in found],
            complete=kept.issuperset(snapshots.disk_ids([])),
            request_ids=client.request_ids,
        )


if __name__ == "__main__":
    main()
