#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Look into the image file of a disk before it is uploaded and imported
version_added: 0.1.0
description:
  - Tells what an image file really is, whether it is whole, which system is on it, whether that would boot as a CVM,
    and how long it will take to the cloud, with and without compression.
  - Needs neither root nor a mount. The disk in the image is read through C(qemu-nbd) and a private socket, the files on
    ext, XFS, btrfs and FAT, also on LVM, by the Python packages dissect.*. What could not be read is in RV(unread).
  - What is wrong with an image does not fail the task. It is in RV(findings), and RV(ok) says whether something of it
    stops the import.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.image
  - fleetlift.cvm.image.estimate
  - fleetlift.cvm.attributes
  - fleetlift.cvm.attributes.read_only
options:
  feature:
    description:
      - What is to import the image, which decides about the limits. V(import_image) is the API of this name, which
        makes an image of the account. V(console) is the console's offline migration onto an existing instance.
    type: str
    choices: [import_image, console]
    default: import_image
  purpose:
    description: A V(system) disk has to boot, a V(data) disk has not.
    type: str
    choices: [system, data]
    default: system
  uefi:
    description:
      - What a GUID partition table, or a system that only starts by UEFI, means. The vendor's guide says that they are
        not supported, its API that they are.
    type: str
    choices: [warn, block, ignore]
    default: warn
  target_disk_size:
    description: The size in bytes of the disk that the image goes to. Not compared when not given.
    type: int
  check:
    description: Whether the consistency of the image's own tables is checked, which reads all of them.
    type: bool
    default: true
  content:
    description: Whether the disk in the image is looked at.
    type: bool
    default: true
  check_timeout:
    description: How long the consistency check may take, in seconds.
    type: int
    default: 3600
  content_timeout:
    description: How long looking at the disk's content may take, in seconds.
    type: int
    default: 300
attributes:
  action:
    description: Has a corresponding action plugin, which brings the agent's parsers along.
    support: full
seealso:
  - module: fleetlift.cvm.image_convert
  - module: fleetlift.cvm.image_prepare
  - module: fleetlift.cvm.cos_object
"""

EXAMPLES = r"""
- name: Look at an image on the controller
  fleetlift.cvm.image_info:
    path: /srv/images/web1.vmdk
    target_disk_size: "{{ 50 * 1024 ** 3 }}"
  delegate_to: localhost
  register: found

- name: Stop here if it cannot be imported
  ansible.builtin.assert:
    that: found.ok
    fail_msg: "{{ found.findings | selectattr('severity', 'equalto', 'blocker') | map(attribute='cause') | join(' ') }}"
"""

RETURN = r"""
ok:
  description: Whether no finding is a blocker.
  returned: always
  type: bool
findings:
  description: What is wrong or worth knowing, worst first, with code, severity, subject, cause, action and evidence.
  returned: always
  type: list
  elements: dict
  sample: []
image:
  description: The file and what its header says. Only C(path) when it cannot be read.
  returned: always
  type: dict
  contains:
    path:
      description: The file.
      type: str
    name:
      description: Its name without directories.
      type: str
    format:
      description:
        - C(qcow2), C(vhd), C(vmdk), C(vdi), C(vhdx) or C(raw); or what it is instead, such as C(iso) or C(gzip).
      type: str
    variant:
      description: The kind of it, such as C(dynamic), C(streamOptimized) or C(version 3).
      type: str
    extension_fits:
      description: Whether the end of its name is one that this format has.
      type: bool
    file_size:
      description: The file's size in bytes, which is what is uploaded.
      type: int
    allocated_size:
      description: What the file takes on its disk in bytes. It is less for a sparse file.
      type: int
    virtual_size:
      description: The size in bytes of the disk in it. None when that is not known.
      type: int
    backing_file:
      description: The file that this one is only the difference to. Empty for a whole image.
      type: str
    parts:
      description: Further files that hold its data.
      type: list
      elements: str
    snapshots:
      description: The names of its internal snapshots.
      type: list
      elements: str
    encrypted:
      description: Whether it is encrypted.
      type: bool
consistency:
  description: Whether the image is whole, by its header, its own tables and the partition table in it.
  returned: when the file can be read
  type: dict
  contains:
    checked:
      description: Whether QEMU checked the tables. For raw and VHD it has no check.
      type: bool
    ok:
      description: Whether nothing is wrong, which is so as long as neither IMAGE_CORRUPT nor IMAGE_TRUNCATED is found.
      type: bool
    errors:
      description: How many errors were found.
      type: int
    leaks:
      description: How many clusters are in use by nothing, which does no harm.
      type: int
    reason:
      description: Why it was not checked, or what stopped the check.
      type: str
partition_table:
  description: C(gpt), C(mbr) or C(none). None when the disk was not read.
  returned: when the file can be read
  type: str
partitions:
  description: The partitions with number, start, size, type, partuuid, holds, uuid and label; in bytes.
  returned: when the file can be read
  type: list
  elements: dict
firmware:
  description: The kinds of firmware that find something to start, C(bios) and C(uefi).
  returned: when the file can be read
  type: list
  elements: str
filesystems:
  description: What the volumes hold, logical volumes included, with volume, size, holds, uuid and label.
  returned: when the file can be read
  type: list
  elements: dict
root:
  description: The volume with the system, its filesystem and uuid. None when it was not found.
  returned: when the file can be read
  type: dict
system:
  description: The system with id, version and name as in os-release, architecture and hostname. None when not found.
  returned: when the file can be read
  type: dict
  sample: {id: debian, version: "12", name: Debian GNU/Linux 12 (bookworm), architecture: x86_64, hostname: web1}
kernels:
  description: The installed kernels, each with version, initramfs, virtio, missing and no_driver.
  returned: when the file can be read
  type: list
  elements: dict
  contains:
    version:
      description: Its version.
      type: str
    initramfs:
      description: The path of its initramfs. Empty when it has none.
      type: str
    virtio:
      description: Whether it reaches its disk on a CVM. None when that could not be found out.
      type: bool
    missing:
      description: The drivers that its initramfs lacks.
      type: list
      elements: str
    no_driver:
      description: Whether it has no such drivers at all, so that no initramfs helps.
      type: bool
virtio:
  description: Whether every kernel reaches its disk on a CVM. None when that could not be found out.
  returned: when the file can be read
  type: bool
cloud_init:
  description: Whether cloud-init is installed. None when that could not be found out.
  returned: when the file can be read
  type: bool
unread:
  description: What of the disk could not be read, and why.
  returned: when the file can be read
  type: list
  elements: dict
  sample:
    - what: /boot/initrd.img-6.1.0-28-amd64
      why: zstd is not installed where the image is
import_parameters:
  description:
    - What ImportImage is to be told, with architecture, os_type, os_version and boot_mode. Empty where not known.
  returned: when the file can be read
  type: dict
  sample: {architecture: x86_64, os_type: Debian, os_version: "12", boot_mode: Legacy BIOS}
estimate:
  description: How long it takes to the cloud, and what compressing it first would save.
  returned: when the file can be read
  type: dict
  contains:
    as_it_is:
      description: >-
        Uploading the file as it is, with bytes, convert_seconds, upload_seconds, import_seconds, total_seconds and
        storage_cost.
      type: dict
    compressed:
      description: The same for a compressed qcow2, with the ratio of the sample. None when it could not be sampled.
      type: dict
    compression_pays:
      description: Whether compressing first ends sooner.
      type: bool
    saved_seconds:
      description: By how much.
      type: float
    assumed:
      description: What the estimate assumes.
      type: dict
estimate_text:
  description: The estimate in words.
  returned: when the file can be read
  type: str
  sample: "as it is 2.0 GiB: 3:49 upload, 0:13 import; compressed first 153 MiB: 0:06 conversion, 0:17 upload"
finding:
  description: What went wrong.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.inspection import Order, inspect, unreadable
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.judgement import Wishes
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.module import (
    assumptions_of,
    estimate_argument_spec,
    image_argument_spec,
    prepared,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **image_argument_spec(),
            **estimate_argument_spec(),
            "feature": {"type": "str", "choices": ["import_image", "console"], "default": "import_image"},
            "purpose": {"type": "str", "choices": ["system", "data"], "default": "system"},
            "uefi": {"type": "str", "choices": ["warn", "block", "ignore"], "default": "warn"},
            "target_disk_size": {"type": "int"},
            "check": {"type": "bool", "default": True},
            "content": {"type": "bool", "default": True},
            "check_timeout": {"type": "int", "default": 3600},
            "content_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    with prepared(module):
        order = Order(
            params["agent"] or "",
            params["check"],
            params["content"],
            params["check_timeout"],
            params["content_timeout"],
        )
        wishes = Wishes(params["feature"], params["uefi"], params["purpose"], params["target_disk_size"])
        try:
            result = inspect(params["path"], order, wishes, assumptions_of(params))
        except Refusal as refusal:
            if refusal.finding.code != "IMAGE_UNREADABLE":
                raise
            result = unreadable(params["path"], refusal)
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
