#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cos_object_info
short_description: Read an object of Tencent Cloud COS, and make a presigned URL of it
version_added: 0.1.0
description:
  - Tells whether an object exists, with its size and CRC64, and which uploads to its key were begun and not finished.
  - With O(url_life) it makes a URL that lets anyone who holds it read the object for that long, an image import for
    example. Nothing is sent to COS for that. The URL is computed from the key.
  - Changes nothing at COS.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cos
  - fleetlift.cvm.attributes
  - fleetlift.cvm.attributes.read_only
options:
  key:
    description: The object's key.
    type: str
    required: true
  url_life:
    description:
      - Also make a presigned URL, which is valid for this many seconds from now on.
      - A URL from a temporary key ends with the key, whatever this says.
      - Outside mainland China an image import reads such a URL once. Make a new one for each import.
    type: int
  url_file:
    description:
      - Write the URL into this file, of mode 0600, in place of returning it.
    type: path
attributes:
  action:
    description: Has a corresponding action plugin, which keeps RV(url) out of the output.
    support: full
notes:
  - RV(url) is a secret. A result with it is therefore treated as with C(no_log) by the output and the logs of Ansible;
    it can still be registered and used. Give C(no_log=true) to the tasks that use it.
seealso:
  - module: fleetlift.cvm.cos_object
"""

EXAMPLES = r"""
- name: Make a URL for the import, valid for two hours
  fleetlift.cvm.cos_object_info:
    bucket: images-1250000000
    key: images/web1.qcow2
    url_life: 7200
  delegate_to: localhost
  register: image
"""

RETURN = r"""
exists:
  description: Whether there is such an object.
  returned: success
  type: bool
  sample: true
object:
  description: The object.
  returned: when it exists
  type: dict
  contains:
    bucket:
      description: The bucket.
      type: str
    key:
      description: The key.
      type: str
    size:
      description: Bytes.
      type: int
    etag:
      description: The ETag, without quotes. The MD5 of an object that was stored in one piece.
      type: str
    crc64:
      description: The CRC64 of ECMA-182, decimal. Null for an object that COS keeps none of.
      type: str
    modified:
      description: When it was stored, as in the C(Last-Modified) header.
      type: str
    content_type:
      description: Its content type.
      type: str
    storage_class:
      description: Its storage class.
      type: str
    public:
      description: Whether others than the account may read it by its own ACL.
      type: bool
unfinished:
  description: Uploads to this key that were begun and not finished, oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    upload_id:
      description: Its id.
      type: str
    initiated:
      description: When it was begun, in seconds since 1970.
      type: float
    parts:
      description: How many parts have arrived.
      type: int
    bytes:
      description: The bytes in them.
      type: int
url:
  description: The presigned URL. A secret.
  returned: when O(url_life) is set, O(url_file) is not, and the object exists
  type: str
url_expires:
  description: When the URL ends, in seconds since 1970.
  returned: when O(url_life) is set and the object exists
  type: int
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_client import CosClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.cos_upload import unfinished
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    cos_argument_spec,
    cos_client_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import refuse


def read(params: dict[str, Any], client: CosClient) -> dict[str, Any]:
    """The module's result."""
    bucket, key, life = params["bucket"], params["key"], params["url_life"]
    if life is not None and life < 1:
        raise refuse("OPTION_OUT_OF_RANGE", "url_life", f"url_life is {life}.", "Set it to at least 1.")
    head = client.head(bucket, key)
    begun = []
    for upload in unfinished(client, bucket, key):
        parts = client.parts(bucket, key, upload.upload_id)
        begun.append(
            {
                "upload_id": upload.upload_id,
                "initiated": upload.initiated,
                "parts": len(parts),
                "bytes": sum(part.size for part in parts),
            }
        )
    result: dict[str, Any] = {"exists": head is not None, "unfinished": begun}
    if head is None:
        return result
    result["object"] = {
        "bucket": bucket,
        "key": key,
        **asdict(head),
        "crc64": None if head.crc is None else str(head.crc),
        "public": client.object_is_public(bucket, key),
    }
    del result["object"]["crc"]
    if life is not None:
        write_secret(params["url_file"], client.presign(bucket, key, life))
        result["url_expires"] = int(time.time()) + life
    return result


def write_secret(path: str, text: str) -> None:
    """Replace the file at *path*; nobody but its owner can read it at any moment."""
    new = Path(f"{path}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text)
    new.replace(path)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cos_argument_spec(),
            "key": {"type": "str", "required": True, "no_log": False},
            "url_life": {"type": "int"},
            # The URL holds the SecretId, and Ansible cuts a module's secrets out of what it returns.
            "url_file": {"type": "path"},
        },
        required_by={"url_life": "url_file"},
        supports_check_mode=True,
    )
    with reported(module):
        module.exit_json(changed=False, **read(module.params, cos_client_for(module)))


if __name__ == "__main__":
    main()
