#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_convert
short_description: Make a compressed qcow2 of a disk image when that brings it to the cloud sooner
version_added: 0.1.0
description:
  - Converts with C(qemu-img) when the estimate says that converting and uploading takes less time than uploading the
    file as it is, or when the image cannot be imported as it is but can be converted (VDI, VHDX, a split VMDK, a file
    that is too large).
  - The result is written beside its final name, compared with its source by C(qemu-img compare), and then renamed.
    A run that was interrupted, in any way, leaves nothing under the final name, and the next one begins anew.
  - The source is only read. A result that is there already is compared with the source, and left alone when both are
    the same.
  - Progress with rate and time left is shown while it runs on the controller.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.image
  - fleetlift.cvm.image.estimate
  - fleetlift.cvm.attributes
options:
  dest:
    description: The qcow2 file to write, in a directory that exists.
    type: path
    required: true
  when:
    description:
      - V(pays) converts when that saves time, or when the image cannot be imported otherwise. V(always) and V(never) do
        what they say.
    type: str
    choices: [always, pays, never]
    default: pays
  compression:
    description:
      - V(zlib) is read by every version of QEMU. V(zstd) is faster and needs QEMU 5.1, and whether the cloud's import
        has that is not documented.
    type: str
    choices: [zlib, zstd]
    default: zlib
  timeout:
    description: How long the conversion and the comparison may take each, in seconds.
    type: int
    default: 86400
  progress_file:
    description:
      - A file that is replaced with the state, as JSON, twice a second. Set by this collection itself to show the
        progress; not needed in a playbook.
    type: path
attributes:
  action:
    description: Has a corresponding action plugin, which shows the progress.
    support: full
seealso:
  - module: fleetlift.cvm.image_info
  - module: fleetlift.cvm.cos_object
"""

EXAMPLES = r"""
- name: Compress an image if that is worth it over a line of 200 Mbit/s
  fleetlift.cvm.image_convert:
    path: /srv/images/web1.vmdk
    dest: /srv/images/web1.qcow2
    bandwidth: 25000000
  delegate_to: localhost
  register: image

- name: Upload whatever is better
  fleetlift.cvm.cos_object:
    bucket: images-1250000000
    key: images/{{ image.path | basename }}
    path: "{{ image.path }}"
"""

RETURN = r"""
path:
  description: The image to go on with, O(dest) when it was converted and O(path) when it was not.
  returned: success
  type: str
converted:
  description: Whether RV(path) is the converted image. In check mode, whether it would be.
  returned: success
  type: bool
reason:
  description: Why it was converted or not.
  returned: success
  type: str
verified:
  description: Whether the converted image was compared with its source in this run.
  returned: success
  type: bool
source_size:
  description: The size of the source file in bytes.
  returned: success
  type: int
size:
  description: The size of the file at RV(path) in bytes.
  returned: success
  type: int
estimate:
  description: As RV(fleetlift.cvm.image_info#module:estimate).
  returned: success
  type: dict
estimate_text:
  description: The estimate in words.
  returned: success
  type: str
seconds:
  description: How long it took.
  returned: when it was converted in this run
  type: float
rate:
  description: How many bytes of the disk were converted and compared in a second.
  returned: when it was converted in this run
  type: int
finding:
  description: What went wrong.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.compress import Wish, compress
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.module import (
    assumptions_of,
    estimate_argument_spec,
    image_argument_spec,
    prepared,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import ProgressFile, UploadProgress


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **image_argument_spec(),
            **estimate_argument_spec(),
            "dest": {"type": "path", "required": True},
            "when": {"type": "str", "choices": ["always", "pays", "never"], "default": "pays"},
            "compression": {"type": "str", "choices": ["zlib", "zstd"], "default": "zlib"},
            "timeout": {"type": "int", "default": 86400},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    with prepared(module):
        wish = Wish(
            params["path"], params["dest"], params["when"], params["compression"], params["timeout"], module.check_mode
        )
        progress = UploadProgress(0)
        with ProgressFile(params["progress_file"], progress):
            result = compress(wish, params["agent"], assumptions_of(params), progress)
        module.exit_json(**result)


if __name__ == "__main__":
    main()
