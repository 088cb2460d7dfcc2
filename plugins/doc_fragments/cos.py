# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  secret_id:
    description:
      - SecretId of the API key.
      - If not set, the environment variable E(TENCENTCLOUD_SECRET_ID) is used.
    type: str
  secret_key:
    description:
      - SecretKey of the API key.
      - If not set, the environment variable E(TENCENTCLOUD_SECRET_KEY) is used.
    type: str
  token:
    description:
      - Session token, for a temporary key from STS.
    type: str
  region:
    description:
      - The region of the bucket, such as V(ap-guangzhou).
      - If not set, the environment variable E(TENCENTCLOUD_REGION) is used.
    type: str
  endpoint:
    description:
      - Has no effect on COS. It is here so that one C(module_defaults) serves C(group/fleetlift.cvm.cloud).
    type: str
  endpoint_domain:
    description:
      - Has no effect on COS. It is here so that one C(module_defaults) serves C(group/fleetlift.cvm.cloud).
    type: str
  cos_endpoint:
    description:
      - URL of a server to connect to for COS, such as V(http://10.98.0.11:80); a private connection's address, for
        example. Requests keep the bucket's own host name, so that the server knows the bucket.
      - If not set, the vendor's own host of each bucket is used, by HTTPS.
    type: str
  bucket:
    description:
      - The bucket, with the account's APPID at its end, such as V(images-1250000000).
    type: str
    required: true
  api_timeout:
    description:
      - Seconds to wait for the answer to one request, once it was sent.
    type: int
    default: 60
requirements:
  - cos-python-sdk-v5 >= 1.9.44
  - anycrc >= 2.1
notes:
  - Runs on the controller only. Use C(delegate_to=localhost) in a play over servers, so that the API key never reaches
    one.
"""
