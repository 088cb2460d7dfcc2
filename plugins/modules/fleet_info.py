# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_info
short_description: Read the targets of a whole fleet at once
version_added: 0.1.0
description:
  - Reads the target instances of many sources with as few requests as the API allows, one for each hundred instances of
    an account and region, one for each hundred disks, and one for each security group.
  - Never fails for one of them. What went wrong is returned beside the others.
  - Run it once for all hosts, with C(run_once), on the controller.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes.read_only
  - fleetlift.cvm.attributes
options:
  sources:
    description:
      - Names of sources in the inventory. Those without a variable of the name in O(access) are left out.
    type: list
    elements: str
    required: true
  access:
    description:
      - The name of the variable or fact of each source that says which instance is its target and how to ask for it. It
        holds C(instance_id) and any of the options O(fleetlift.cvm.target_info#module:region),
        O(fleetlift.cvm.target_info#module:endpoint), O(fleetlift.cvm.target_info#module:endpoint_domain),
        O(fleetlift.cvm.target_info#module:secret_id) and O(fleetlift.cvm.target_info#module:secret_key), and
        C(landing_address), one of V(auto), V(public), V(private) or an address.
    type: str
    required: true
  plan:
    description:
      - Names of all sources whose plan matters for these, such as those of the group C(sources). Nothing is asked about
        their targets.
    type: list
    elements: str
    default: []
seealso:
  - module: fleetlift.cvm.target_info
"""

EXAMPLES = r"""
- name: Say where each target is
  ansible.builtin.set_fact:
    target_access: {instance_id: "{{ fleetlift_target }}", region: ap-guangzhou}

- name: Read all targets at once
  fleetlift.cvm.fleet_info:
    sources: "{{ ansible_play_hosts }}"
    access: target_access
  delegate_to: localhost
  run_once: true
  register: fleet
"""

RETURN = r"""
targets:
  description: One of RV(fleetlift.cvm.target_info#module:targets) by the name of its source.
  returned: always
  type: dict
  sample: {web1: {instance_id: ins-webtgt01, state: RUNNING}}
errors:
  description: The finding for each source whose target could not be read, by the source's name.
  returned: always
  type: dict
  sample: {}
addresses:
  description: Where the landing of each source will be, the first to be used, as its C(landing_address) chooses.
  returned: always
  type: dict
  sample: {web1: [203.0.113.11, 10.97.0.11]}
plan:
  description: The id of the target of each source in O(plan), by the source's name; empty where none is known yet.
  returned: always
  type: dict
  sample: {web1: ins-webtgt01, web2: ins-webtgt02, app1: ""}
bandwidth_shares:
  description: The weight of each source in O(plan) in the sharing of a bandwidth budget, C(fleetlift_bandwidth_share).
  returned: always
  type: list
  elements: int
  sample: [1, 1, 4]
request_ids:
  description: Ids of the API requests, for the vendor's support.
  returned: always
  type: list
  elements: str
"""
