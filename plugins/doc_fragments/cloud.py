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
      - The region of the target instances, such as V(ap-guangzhou).
      - If not set, the environment variable E(TENCENTCLOUD_REGION) is used.
    type: str
  endpoint:
    description:
      - URL of a server that answers for every service, such as V(http://10.98.0.10:80).
      - If not set, the vendor's own host of each service is used.
    type: str
  endpoint_domain:
    description:
      - Root domain of the vendor's hosts, such as V(intl.tencentcloudapi.com) for an international account.
      - Has no effect together with O(endpoint).
    type: str
  api_timeout:
    description:
      - Seconds to wait for the answer to one API request.
    type: int
    default: 60
requirements:
  - tencentcloud-sdk-python-common >= 3.1
notes:
  - Runs on the controller. Use C(delegate_to=localhost) in a play over servers, so that the API key never reaches one.
"""
