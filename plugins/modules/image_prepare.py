#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_prepare
short_description: Make a copy of a disk image that boots as a CVM
version_added: 0.1.0
description:
  - Copies the image and adapts the copy as M(fleetlift.cvm.boot_adapt) adapts the copy of a server. It puts virtio
    drivers into the initramfs of every kernel, replaces device names by UUIDs, lets the first NIC ask for its address,
    disables the guest tools of the old platform, and so on.
  - The user's own file is only read. The copy is compared with it before it is adapted, and gets its final name when
    all is done. A run that was interrupted, in any way, leaves nothing under that name, no mount and no loop device.
  - What was changed is listed in the result, in the record beside the prepared image, and with the originals in
    C(/var/lib/fleetlift) on the image itself.
  - A prepared image whose record says that it was made of this very file with these options is left alone.
  - Needs root, because the copy is mounted, and free space for what the disk holds, because that is a raw file.
    In check mode as well, where the copy is removed at the end.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.adaptation
  - fleetlift.cvm.image
  - fleetlift.cvm.attributes
options:
  dest:
    description: The prepared image, in a directory that exists. Its record is O(dest) with C(.adapt.json) appended.
    type: path
    required: true
  format:
    description: The format of the prepared image.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  compress:
    description: Whether a qcow2 is compressed, with zlib.
    type: bool
    default: true
  grow_to:
    description:
      - The size in bytes that the disk in the prepared image shall have. Its last partition, and the filesystem or
        logical volume on it, grow with it. The size of the image's own disk when not given.
      - Give the size of the instance's system disk, if that is larger than the image's disk and to be filled.
    type: int
  firmware:
    description: What the instance will start with. V(auto) is what the image was made for, BIOS if it has both.
    type: str
    choices: [auto, bios, uefi]
    default: auto
  timeout:
    description: How long one conversion, comparison or the adaptation may take, in seconds.
    type: int
    default: 86400
  progress_file:
    description:
      - A file that is replaced with the state, as JSON, twice a second. Set by this collection itself to show the
        progress; not needed in a playbook.
    type: path
attributes:
  diff_mode:
    support: full
  action:
    description: Has a corresponding action plugin, which brings the agent along and shows the progress.
    support: full
notes:
  - Programs of the system on the image, such as the one that makes its initramfs, run as root in a mount and process
    namespace of their own. Prepare only images that you would also boot.
seealso:
  - module: fleetlift.cvm.image_info
  - module: fleetlift.cvm.image_convert
  - module: fleetlift.cvm.boot_adapt
"""

EXAMPLES = r"""
- name: See what would be changed
  fleetlift.cvm.image_prepare:
    path: /srv/images/web1.vmdk
    dest: /srv/images/web1-cvm.qcow2
  check_mode: true
  diff: true

- name: Prepare an image of a VMware guest
  fleetlift.cvm.image_prepare:
    path: /srv/images/web1.vmdk
    dest: /srv/images/web1-cvm.qcow2
    consoles: [ttyS0]
  become: true
  register: image

- name: Upload it
  fleetlift.cvm.cos_object:
    bucket: images-1250000000
    key: images/web1-cvm.qcow2
    path: "{{ image.path }}"
"""

RETURN = r"""
path:
  description: The prepared image.
  returned: success
  type: str
record:
  description: The record beside it, a JSON file with the source, the changes and the findings.
  returned: success, but not in check mode
  type: str
size:
  description: The size of the prepared image in bytes.
  returned: success, but not in check mode
  type: int
changes:
  description: What was changed on the copy, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    concern:
      description: The part of the system that it is about.
      type: str
      sample: initramfs
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
  description: The volume that the system is on, with volume, filesystem, uuid and system.
  returned: success
  type: dict
seconds:
  description: How long it took.
  returned: when it was prepared in this run
  type: float
finding:
  description: What went wrong.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.boot_adaptation import agent_options
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.module import image_argument_spec, prepared
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.prepare import Wish, prepare
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import ProgressFile, UploadProgress

CONCERNS = [
    "partition_table", "fstab", "crypttab", "mdadm", "lvm", "network", "nic_names", "guest_tools", "cloud_init",
    "kernel_command_line", "initramfs", "boot_loader", "selinux",
]  # fmt: skip


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **image_argument_spec(),
            "dest": {"type": "path", "required": True},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "compress": {"type": "bool", "default": True},
            "skip": {"type": "list", "elements": "str", "choices": CONCERNS, "default": []},
            "grow_to": {"type": "int"},
            "firmware": {"type": "str", "choices": ["auto", "bios", "uefi"], "default": "auto"},
            "root": {"type": "str"},
            "network": {
                "type": "dict",
                "default": {},
                "options": {
                    "mode": {"type": "str", "choices": ["dhcp", "static", "keep"], "default": "dhcp"},
                    "nic": {"type": "str"},
                    "address": {"type": "str"},
                    "gateway": {"type": "str"},
                    "dns": {"type": "list", "elements": "str", "default": []},
                },
            },
            "consoles": {"type": "list", "elements": "str", "default": []},
            "cloud_init": {"type": "str", "choices": ["safe", "disabled", "keep"], "default": "safe"},
            "command_timeout": {"type": "int", "default": 1800},
            "timeout": {"type": "int", "default": 86400},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    with prepared(module):
        wish = Wish(
            params["path"],
            params["dest"],
            agent_options(params),
            params["format"],
            params["compress"],
            params["timeout"],
            params["grow_to"],
            module.check_mode,
            module._diff,
        )
        progress = UploadProgress(0)
        with ProgressFile(params["progress_file"], progress):
            result = prepare(wish, params["agent"], progress)
        module.exit_json(**result)


if __name__ == "__main__":
    main()
