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
    is touched.
  - Reads nothing but its options and changes nothing.
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
    required: true
  source_findings:
    description:
      - The findings that M(fleetlift.cvm.preflight) returned for it. They are part of the result.
    type: list
    elements: dict
    default: []
  target:
    description:
      - The target, one of RV(fleetlift.cvm.target_info#module:targets). An empty one is a target that was not found.
    type: dict
    required: true
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
      - The address from which the target sees the source. If not set, only rules for every address are certain.
    type: str
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
ok:
  description: Whether no finding is a blocker.
  returned: always, unless an option is not valid
  type: bool
finding:
  description: The first blocker.
  returned: when there is one
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import target_from_record
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Finding, by_severity, finding_from
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import Assessment, assess_source


def assess(params: dict[str, Any]) -> Assessment:
    """The assessment for the module's options. Raises ``KeyError`` or ``ValueError`` for a record without its shape."""
    source_findings = [finding_from(record) for record in params["source_findings"]]
    if not params["target"]:
        return Assessment((), tuple(by_severity([_not_found(params), *source_findings])))
    return assess_source(
        source=params["source"],
        facts=params["source_facts"],
        target=target_from_record(params["target"]),
        mapping=params["disks"],
        targets_of_all={str(name): str(target) for name, target in params["targets_of_all"].items()},
        port=params["port"],
        ssh_port=params["ssh_port"],
        source_address=params["source_address"],
        controller_address=params["controller_address"],
        target_host_keys=params["target_host_keys"],
        source_findings=source_findings,
    )


def _not_found(params: dict[str, Any]) -> Finding:
    return Finding(
        "TARGET_NOT_FOUND",
        "blocker",
        params["source"],
        f"The target {params['target_id'] or ''} of {params['source']} was not found.".replace("  ", " "),
        "Check the instance id and region.",
        {"instance_id": params["target_id"]},
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "source_facts": {"type": "dict", "required": True},
            "source_findings": {"type": "list", "elements": "dict", "default": []},
            "target": {"type": "dict", "required": True},
            "target_id": {"type": "str"},
            "disks": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "source": {"type": "str", "required": True},
                    "target": {"type": "str", "required": True},
                },
            },
            "targets_of_all": {"type": "dict", "default": {}},
            "port": {"type": "int", "default": 443},
            "ssh_port": {"type": "int", "default": 22},
            "source_address": {"type": "str"},
            "controller_address": {"type": "str"},
            "target_host_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "fail_on_blocker": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        assessment = assess(module.params)
    except (KeyError, TypeError, ValueError) as error:
        module.fail_json(
            msg="INPUT_INVALID: source_facts, source_findings or target do not have the shape that preflight and"
            f" target_info return ({type(error).__name__}: {error}). Next: Pass their results on unchanged."
        )
    blockers = assessment.blockers
    result = {
        "changed": False,
        "pairs": [pair.record() for pair in assessment.pairs],
        "findings": [finding.record() for finding in assessment.findings],
        "ok": not blockers,
    }
    if blockers:
        result["finding"] = blockers[0].record()
    if blockers and module.params["fail_on_blocker"]:
        module.fail_json(msg="\n".join(map(str, blockers)), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
