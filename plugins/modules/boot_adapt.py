# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_adapt
short_description: Make the copy on the target's disks bootable on its new hardware
version_added: 0.1.0
description:
  - Runs in the landing, on the mounted copy, after the final pass. The source is never touched.
  - Puts virtio drivers into the initramfs of every installed kernel, replaces device names by UUIDs, marks volumes that
    did not come along C(nofail), lets the first NIC ask for its address, provides the boot loader for the firmware in
    use, disables the old platform's guest tools, keeps cloud-init from changing who the server is, and asks for an
    SELinux relabel where files were edited.
  - Every change is listed in the result and in C(/var/lib/fleetlift/adapt.json) on the copy. The originals are kept in
    C(/var/lib/fleetlift/originals), and O(state=absent) puts them back.
  - A run that was cut off, by a power loss for example, is continued by the next one.
  - A receiver that is still running is stopped first, and what it remembers of the disks is removed, so that a later
    synchronisation compares them anew.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.adaptation
  - fleetlift.cvm.attributes
options:
  state:
    description:
      - V(present) adapts, V(absent) undoes what was adapted.
      - A partition table or filesystem that was enlarged stays as it is.
    type: str
    choices: [present, absent]
    default: present
  migration:
    description: The migration's name. The inventory host name when not given.
    type: str
  disks:
    description:
      - The disk pairs, as RV(fleetlift.cvm.assess#module:pairs) gives them. The first one is the system disk.
      - Without them, those in the configuration of the receiver in this landing; the names of the source's disks are
        then guessed from their order.
    type: list
    elements: dict
    suboptions:
      id:
        description: The pair's name, C(d0), C(d1) and so on.
        type: str
        required: true
      target_serial:
        description: The serial number of the target's disk, which on a CVM is its disk ID.
        type: str
        required: true
      device:
        description: What the disk was called on the source, to understand names such as C(/dev/sda1).
        type: path
      aliases:
        description: Further names of it on the source, such as the links in C(/dev/disk/by-id).
        type: list
        elements: str
        default: []
      size:
        description: The source disk's size in bytes.
        type: int
      source_serial:
        description:
          - The source disk's serial number, to understand names such as C(/dev/disk/by-id/ata-MODEL_SERIAL-part1).
        type: str
      target_size:
        description: The target disk's size in bytes. Not used.
        type: int
  firmware:
    description: What the target starts with. V(auto) is what its landing was started with.
    type: str
    choices: [auto, bios, uefi]
    default: auto
  grow:
    description:
      - Whether the last partition of each disk is enlarged to the target's disk, with the filesystem on it (ext4, xfs,
        btrfs).
      - What an LVM physical volume gains goes to the root's logical volume and filesystem when these are in its group.
    type: bool
    default: false
  python:
    description: The interpreter for the agent. A suitable one is found when not given.
    type: str
  runtime:
    description: A C(.tar.gz) on the controller with a relocatable Python, used when the landing has none that will do.
    type: path
"""

EXAMPLES = r"""
- name: See what would be changed
  fleetlift.cvm.boot_adapt:
    disks: "{{ fleetlift_assessment.pairs }}"
  check_mode: true
  diff: true

- name: Adapt, and keep the address plan
  fleetlift.cvm.boot_adapt:
    disks: "{{ fleetlift_assessment.pairs }}"
    network:
      mode: static
      address: 10.0.0.5/24
      gateway: 10.0.0.1
      dns: [183.60.83.19]

- name: Put everything back as it was on the source
  fleetlift.cvm.boot_adapt:
    state: absent
    disks: "{{ fleetlift_assessment.pairs }}"
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    concern:
      description: The part of the system that it is about.
      type: str
      sample: fstab
    action:
      description: What happened to the file, or in words what was done.
      type: str
      sample: changed
    path:
      description: The file on the copy. Empty for what is no file.
      type: str
      sample: /etc/fstab
findings:
  description: What the operator should know, each with code, severity, subject, cause, action and evidence.
  returned: success
  type: list
  elements: dict
  sample: []
root:
  description: The volume that the system is on.
  returned: success
  type: dict
  sample:
    volume: d0p1
    filesystem: ext4
    uuid: f7de62cf-9230-444b-ae23-2f7c593b6d5a
    system: Debian GNU/Linux 12 (bookworm)
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 14.2
"""
