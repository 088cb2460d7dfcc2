#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloud_image_info
short_description: Read the account's images, and what the cloud imports
version_added: 0.1.0
description:
  - Reads images by id or by name, or all of the account's own, and lists the operating systems that can be imported.
  - For image files on a disk, see M(fleetlift.cvm.image_info).
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cloud
  - fleetlift.cvm.attributes
  - fleetlift.cvm.attributes.read_only
options:
  image_ids:
    description: The images. Those that do not exist are left out.
    type: list
    elements: str
  names:
    description: The account's own images of exactly these names. Those that do not exist are left out.
    type: list
    elements: str
seealso:
  - module: fleetlift.cvm.image_import
"""

EXAMPLES = r"""
- name: Look at one image
  fleetlift.cvm.cloud_image_info:
    names: [web1]
  delegate_to: localhost
  register: found
"""

RETURN = r"""
images:
  description: The images.
  returned: success
  type: list
  elements: dict
  contains:
    image_id:
      description: Its id.
      type: str
    name:
      description: Its name.
      type: str
    state:
      description: The API's C(ImageState).
      type: str
    size_gb:
      description: The smallest system disk that it fits on, in GiB.
      type: int
    description:
      description: Its description.
      type: str
    os_name:
      description: The API's C(OsName).
      type: str
    architecture:
      description: The architecture.
      type: str
    created:
      description: When it was made.
      type: str
    kind:
      description: The API's C(ImageType).
      type: str
    data_snapshots:
      description: The data disks that belong to it, each with snapshot_id and size_gb.
      type: list
      elements: dict
supported:
  description: What can be imported, each with name, versions and architectures.
  returned: success
  type: list
  elements: dict
  sample:
    - name: Debian
      versions: ["11", "12"]
      architectures: [x86_64]
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.images import Image, Images
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    client_for,
    cloud_argument_spec,
    reported,
)


def read(images: Images, image_ids: list[str] | None, names: list[str] | None) -> list[Image]:
    """The images that were asked for."""
    if image_ids is not None:
        return images.by_ids(image_ids)
    if names is not None:
        return [image for name in names if (image := images.named(name)) is not None]
    return images.own()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "image_ids": {"type": "list", "elements": "str"},
            "names": {"type": "list", "elements": "str"},
        },
        mutually_exclusive=[("image_ids", "names")],
        supports_check_mode=True,
    )
    with reported(module):
        images = Images(client_for(module))
        found = read(images, module.params["image_ids"], module.params["names"])
        supported = [
            {**asdict(entry), "versions": list(entry.versions), "architectures": list(entry.architectures)}
            for entry in images.supported()
        ]
        module.exit_json(changed=False, images=[image.record() for image in found], supported=supported)


if __name__ == "__main__":
    main()
