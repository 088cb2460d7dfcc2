#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: assess
short_description: Decide whether a source can go to its target
description:
  - Pairs the disks of a source server with those of its target instance and finds what would go wrong, before anything
    is touched. Estimates what will be sent, how long that takes and how long the server will be down.
  - Reads nothing but its options and changes nothing but the journal that O(record) names.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  source:
    description:
      - Name of the source, usually its name in the inventory.
    type: str
    required: true
  source_facts:
    description:
      - The facts that M(fleetlift.cvm.preflight) returned for it.
    type: dict
    default: {}
  source_findings:
    description:
      - The findings that M(fleetlift.cvm.preflight) returned for it. They are part of the result.
    type: list
    elements: dict
    default: []
  source_error:
    description:
      - Why there are no O(source_facts), if there are none. Such a source is refused, and what can be told of its
        target without them is told.
    type: str
  source_unreachable:
    description:
      - Whether the source could not even be reached.
    type: bool
    default: false
  target:
    description:
      - The target, one of RV(fleetlift.cvm.target_info#module:targets). An empty one is a target that was not found.
    type: dict
    default: {}
  target_error:
    description:
      - The C(finding) with which M(fleetlift.cvm.fleet_info) could not read it.
    type: dict
    default: {}
  target_id:
    description:
      - Id of the target instance as the plan names it, for when O(target) is empty.
    type: str
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
          - V(system), V(data1), V(data2) and so on in the order of attachment, or the id of a disk.
        type: str
        required: true
  targets_of_all:
    description:
      - The target instance of every source of the plan, by the source's name.
    type: dict
    default: {}
  port:
    description:
      - The port on which the target's agent listens.
    type: int
    default: 443
  ssh_port:
    description:
      - Port of the SSH server of the rescue system.
    type: int
    default: 22
  source_address:
    description:
      - The address from which the target sees the source.
      - If not set, it is the one from which the source tried to connect, unless something between the two has to
        translate it. Then it is the only public one of O(source_addresses). Without either, only rules for every
        address are certain.
    type: str
  source_addresses:
    description:
      - The addresses by which others know the source.
    type: list
    elements: str
    default: []
  controller_address:
    description:
      - The address from which the target sees the controller.
    type: str
  target_host_keys:
    description:
      - The public SSH host keys that the running target shows, each a type and a key. A target with a key of the source
        is a copy of it and is refused.
    type: list
    elements: str
    default: []
  landed_before:
    description:
      - Whether an earlier run of this migration has put the target into rescue mode. One that is in it all the same is
        worth a warning.
    type: bool
    default: false
  bandwidth_limit:
    description:
      - Bytes per second that the source may send; V(0) is no limit. What is written to its disks is compared with it.
    type: int
    default: 0
  bandwidth_budget:
    description:
      - Bytes per second that all sources may send together; V(0) is no limit.
    type: int
    default: 0
  bandwidth_share:
    description:
      - The weight of this source in the sharing of O(bandwidth_budget).
    type: int
    default: 1
  bandwidth_shares:
    description:
      - The weights of all sources that run at once, this one included. Without them it is alone.
    type: list
    elements: int
    default: []
  change_tracking:
    description:
      - Whether the source's changes will be tracked, if they can be.
    type: bool
    default: true
  services:
    description:
      - The services that are stopped for the cutover.
    type: list
    elements: str
    default: []
  journal:
    description:
      - The journal of the source. What an earlier run has measured is used for the estimate.
    type: dict
    default: {}
  accept:
    description:
      - Findings that are known and do not matter, with a reason, by their code. Each becomes one step less severe, from
        V(blocker) to V(warning) to V(note), and keeps the reason.
      - A code that does not exist, that guards data or that comes without a reason is refused.
    type: dict
    default: {}
  record:
    description:
      - The directory of the journals, in which the result is noted as the phase C(preflight), unless a blocker fails
        the module. Not noted if not set.
    type: path
  fail_on_blocker:
    description:
      - Whether a finding of severity V(blocker) fails the module, with every blocker in the message.
    type: bool
    default: true
seealso:
  - module: fleetlift.cvm.preflight
  - module: fleetlift.cvm.target_info
"""

EXAMPLES = r"""
- name: Decide whether this source can go to its target
  fleetlift.cvm.assess:
    source: "{{ inventory_hostname }}"
    source_facts: "{{ preflight.facts }}"
    source_findings: "{{ preflight.findings }}"
    target: "{{ info.targets | first }}"
    disks:
      - source: /dev/sda
        target: system
      - source: S3Z8NB0K123456
        target: data1
    targets_of_all:
      web1: ins-webtgt01
      db1: ins-dbtgt001
  delegate_to: localhost
"""

RETURN = r"""
pairs:
  description: The disks that belong together, as M(fleetlift.cvm.agent) takes them.
  returned: always, unless an option is not valid
  type: list
  elements: dict
  contains:
    id:
      description: V(d0), V(d1) and so on, in the order of the target's disks.
      type: str
    device:
      description: Path of the source's disk.
      type: str
    source_serial:
      description: Serial of the source's disk, null if it has none.
      type: str
    size:
      description: Size of the source's disk in bytes.
      type: int
    target_serial:
      description: Serial of the target's disk inside the landing, which is its id.
      type: str
    target_size:
      description: Size of the target's disk in bytes.
      type: int
left_behind:
  description:
    - Paths of the source's disks that belong to no pair, when it was accepted that such disks are in use
      (C(DISK_UNMAPPED)), as M(fleetlift.cvm.agent) takes them.
  returned: always, unless an option is not valid
  type: list
  elements: str
findings:
  description: What was found, worst first, those of O(source_findings) included.
  returned: always, unless an option is not valid
  type: list
  elements: dict
  contains:
    code:
      description: What it is, in a word that does not change.
      type: str
    severity:
      description: V(blocker), V(warning) or V(note).
      type: str
    subject:
      description: The source or instance that it is about.
      type: str
    cause:
      description: Why.
      type: str
    action:
      description: What to do about it.
      type: str
    evidence:
      description: What was observed.
      type: dict
    accepted:
      description: The C(reason) from O(accept), and the C(severity) that it has without.
      returned: when it was accepted
      type: dict
estimate:
  description:
    - What the migration is expected to take; a figure that nothing is known for is null. Empty without O(source_facts).
  returned: always, unless an option is not valid
  type: dict
  sample:
    bytes_to_send: 4294967296
    traffic_bytes: 2576980378
    seconds: 291
    downtime_seconds: 110
    rate_bytes_per_second: 11796480
    assumptions: ["60% of what is read goes over the wire (assumed)"]
ok:
  description: Whether no finding is a blocker.
  returned: always, unless an option is not valid
  type: bool
finding:
  description: The first blocker.
  returned: when there is one
  type: dict
"""
