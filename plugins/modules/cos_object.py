#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cos_object
short_description: Upload an image file to Tencent Cloud COS, or remove it
version_added: 0.1.0
description:
  - Uploads a file in parts, several at once, with the vendor's SDK. Progress with rate and time left is shown while it
    runs.
  - An upload that was interrupted, at any point and in any way, is continued by the next run. Nothing is kept on the
    controller for that. The parts at COS are compared with the file by size and MD5, and only missing or different ones
    are sent.
  - Every part that arrives is compared with what was sent, and the finished object with the file, by the CRC64 that COS
    computes. A part that was damaged on the way is sent again.
  - An object that is the file already, by size and CRC64, is left alone, and costs the reading of the file only.
  - At most one MiB for each connection is held in memory, whatever the file's size. The holes of a sparse file are
    uploaded as zeros, because an object has no holes. Compress such an image first (qcow2).
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cos
  - fleetlift.cvm.attributes
options:
  key:
    description: The object's key, such as V(images/web1.qcow2), without a slash at its start.
    type: str
    required: true
  path:
    description: The file on the controller. Required when O(state=present).
    type: path
  state:
    description:
      - With V(present) the object is the file. It is overwritten when it differs.
      - With V(absent) there is no such object, and no unfinished upload to its key.
    type: str
    choices: [present, absent]
    default: present
  acl:
    description:
      - With V(private) the object can be read by the account only, whatever the bucket allows.
      - With V(default) the bucket's access rules apply to it. The number of ACLs in an account is limited by COS.
    type: str
    choices: [private, default]
    default: private
  part_size:
    description:
      - The size of a part in MiB. It is raised for files that would have more than 10000 parts.
      - An upload that was begun with another size is continued with that one.
    type: int
    default: 16
  connections:
    description: How many parts are sent at once.
    type: int
    default: 4
  bandwidth_limit:
    description: The most that all connections may send together, in bytes per second. No limit if not set.
    type: int
  stall_timeout:
    description:
      - How long COS may be unreachable, overloaded or failing before this is an error, in seconds. Until then sending
        is tried again, with growing pauses.
    type: int
    default: 600
  abandoned_prefix:
    description:
      - Also give up unfinished uploads of other objects whose keys begin with this, when they were begun longer ago
        than O(abandoned_after). Their parts are paid for, and shown nowhere.
      - Unfinished uploads of this object's own key are always given up once it is complete.
    type: str
  abandoned_after:
    description: The age in seconds from which an unfinished upload counts as abandoned.
    type: int
    default: 604800
  progress_file:
    description:
      - A file that is replaced with the upload's state, as JSON, twice a second. Set by this collection itself to show
        the progress; not needed in a playbook.
    type: path
attributes:
  action:
    description: Has a corresponding action plugin, which shows the progress.
    support: full
seealso:
  - module: fleetlift.cvm.cos_object_info
  - module: fleetlift.cvm.cos_bucket
"""

EXAMPLES = r"""
- name: Upload an image, or continue its interrupted upload
  fleetlift.cvm.cos_object:
    bucket: images-1250000000
    key: images/web1.qcow2
    path: /srv/images/web1.qcow2
  delegate_to: localhost

- name: Upload slowly during office hours
  fleetlift.cvm.cos_object:
    bucket: images-1250000000
    key: images/db1.raw
    path: /srv/images/db1.raw
    part_size: 64
    bandwidth_limit: 10485760
  delegate_to: localhost

- name: Remove it after the import, with what was left unfinished
  fleetlift.cvm.cos_object:
    bucket: images-1250000000
    key: images/web1.qcow2
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
object:
  description: The object.
  returned: when O(state=present), not in check mode
  type: dict
  contains:
    bucket:
      description: The bucket.
      type: str
      sample: images-1250000000
    key:
      description: The key.
      type: str
      sample: images/web1.qcow2
    size:
      description: Bytes.
      type: int
      sample: 1073741824
    crc64:
      description: Its CRC64 of ECMA-182, decimal, as in C(x-cos-hash-crc64ecma). Equal to the file's.
      type: str
      sample: "9548687815775124833"
bytes_sent:
  description: Bytes of the file that were sent, without those that had to be sent twice.
  returned: when O(state=present)
  type: int
  sample: 314572800
bytes_kept:
  description: Bytes of the file that an earlier run had brought to COS.
  returned: when O(state=present)
  type: int
  sample: 759169024
seconds:
  description: How long the upload took.
  returned: when something was uploaded
  type: float
  sample: 12.7
abandoned:
  description: Keys whose unfinished uploads were given up, because of O(abandoned_prefix) or O(state=absent).
  returned: success
  type: list
  elements: str
  sample: []
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_client import CosClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_upload import (
    Image,
    Options,
    Uploader,
    abandon,
    unfinished,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cos_argument_spec,
    cos_client_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import refuse
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import ProgressFile, UploadProgress

MIB = 1024 * 1024
RANGES = {"part_size": (1, 5120), "connections": (1, 64), "bandwidth_limit": (1024, None), "stall_timeout": (0, None)}


def check_ranges(params: dict[str, Any]) -> None:
    """Refuse numbers that COS or the sender could do nothing with."""
    for name, (least, most) in RANGES.items():
        value = params[name]
        if value is not None and (value < least or (most is not None and value > most)):
            wanted = f"at least {least}" if most is None else f"between {least} and {most}"
            raise refuse("OPTION_OUT_OF_RANGE", name, f"{name} is {value}.", f"Set it to {wanted}.")


def options_of(params: dict[str, Any]) -> Options:
    """How the module's options say to upload."""
    return Options(
        part_size=params["part_size"] * MIB,
        connections=params["connections"],
        bandwidth_limit=params["bandwidth_limit"],
        stall_timeout=params["stall_timeout"],
        headers={"ACL": "private"} if params["acl"] == "private" else {},
    )


def present(params: dict[str, Any], client: CosClient, check_mode: bool) -> dict[str, Any]:
    """Have the object be the file; returns the result."""
    bucket, key = params["bucket"], params["key"]
    with Image(params["path"]) as image:
        progress = UploadProgress(image.size)
        uploader = Uploader(client, bucket, key, options_of(params), progress)
        with ProgressFile(params["progress_file"], progress):
            head = client.head(bucket, key)
            started = time.monotonic()
            if head is not None and uploader.is_stored(image, head):
                exposed = params["acl"] == "private" and client.object_is_public(bucket, key)
                if exposed and not check_mode:
                    client.make_object_private(bucket, key)
                found = {"bucket": bucket, "key": key, "size": head.size, "crc64": str(head.crc)}
                return {"changed": exposed, "object": found, "bytes_sent": 0, "bytes_kept": head.size}
            if check_mode:
                if head is None and not client.bucket_exists(bucket):
                    raise bucket_missing(bucket)
                return {"changed": True, "bytes_sent": image.size, "bytes_kept": 0}
            uploaded = uploader.upload(image)
    return {
        "changed": True,
        "object": {"bucket": bucket, "key": key, "size": uploaded.size, "crc64": str(uploaded.crc)},
        "bytes_sent": uploaded.sent,
        "bytes_kept": uploaded.kept,
        "seconds": round(time.monotonic() - started, 3),
    }


def bucket_missing(bucket: str) -> Exception:
    """What check mode says when the upload would find no bucket."""
    return refuse(
        "COS_BUCKET_NOT_FOUND",
        bucket,
        "There is no such bucket in this region.",
        "Check bucket and region, or create it with fleetlift.cvm.cos_bucket.",
    )


def absent(params: dict[str, Any], client: CosClient, check_mode: bool) -> dict[str, Any]:
    """Have no such object; returns the result."""
    bucket, key = params["bucket"], params["key"]
    exists = client.head(bucket, key) is not None
    begun = unfinished(client, bucket, key)
    if not check_mode:
        if exists:
            client.delete(bucket, key)
        abandon(client, bucket, begun)
    return {"changed": exists or bool(begun), "abandoned": [upload.key for upload in begun]}


def clean_up(params: dict[str, Any], client: CosClient, check_mode: bool) -> list[str]:
    """Give up what was abandoned below the prefix; returns the keys."""
    if params["abandoned_prefix"] is None:
        return []
    before = time.time() - params["abandoned_after"]
    old = [
        upload
        for upload in unfinished(client, params["bucket"], prefix=params["abandoned_prefix"], before=before)
        if upload.key != params["key"]
    ]
    if not check_mode:
        abandon(client, params["bucket"], old)
    return [upload.key for upload in old]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cos_argument_spec(),
            "key": {"type": "str", "required": True, "no_log": False},
            "path": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "acl": {"type": "str", "choices": ["private", "default"], "default": "private"},
            "part_size": {"type": "int", "default": 16},
            "connections": {"type": "int", "default": 4},
            "bandwidth_limit": {"type": "int"},
            "stall_timeout": {"type": "int", "default": 600},
            "abandoned_prefix": {"type": "str"},
            "abandoned_after": {"type": "int", "default": 604800},
            "progress_file": {"type": "path"},
        },
        required_if=[("state", "present", ["path"])],
        supports_check_mode=True,
    )
    with reported(module):
        check_ranges(module.params)
        client = cos_client_for(module, module.params["connections"])
        act = present if module.params["state"] == "present" else absent
        result = act(module.params, client, module.check_mode)
        old = clean_up(module.params, client, module.check_mode)
        result["abandoned"] = result.get("abandoned", []) + old
        result["changed"] = result["changed"] or bool(old)
        module.exit_json(**result)


if __name__ == "__main__":
    main()
