#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cos_bucket
short_description: Make a private bucket of Tencent Cloud COS, or remove an empty one
version_added: 0.1.0
description:
  - Makes a bucket that only the account can read, or takes what others may do with it by its ACL back.
  - Only an empty bucket is ever removed.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cos
  - fleetlift.cvm.attributes
options:
  state:
    description: Whether the bucket should be there.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: fleetlift.cvm.cos_object
"""

EXAMPLES = r"""
- name: Have a bucket for the images
  fleetlift.cvm.cos_bucket:
    bucket: images-1250000000
    region: ap-guangzhou
  delegate_to: localhost
"""

RETURN = r"""
bucket:
  description: The bucket.
  returned: success
  type: str
  sample: images-1250000000
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_client import CosClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cos_argument_spec,
    cos_client_for,
    reported,
)


def present(client: CosClient, bucket: str, check_mode: bool) -> bool:
    """Have the bucket, private; returns whether that changes anything."""
    if not client.bucket_exists(bucket):
        if not check_mode:
            client.create_bucket(bucket)
        return True
    if not client.bucket_is_public(bucket):
        return False
    if not check_mode:
        client.make_bucket_private(bucket)
    return True


def absent(client: CosClient, bucket: str, check_mode: bool) -> bool:
    """Have no such bucket; returns whether that changes anything."""
    if not client.bucket_exists(bucket):
        return False
    if not check_mode:
        client.delete_bucket(bucket)
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cos_argument_spec(),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    with reported(module):
        client = cos_client_for(module)
        act = present if module.params["state"] == "present" else absent
        changed = act(client, module.params["bucket"], module.check_mode)
        module.exit_json(changed=changed, bucket=module.params["bucket"])


if __name__ == "__main__":
    main()
