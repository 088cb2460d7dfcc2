# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Call one action of the lab's cloud behind the collection's back, as somebody at the console would.

cloud_call.py SERVICE ACTION JSON, with the credentials that ``python -m lab run`` puts into the environment.
"""

from __future__ import annotations

import json
import os
import sys

from tencentcloud.common.common_client import CommonClient
from tencentcloud.common.credential import EnvironmentVariableCredential
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile

service, action, parameters = sys.argv[1:]
profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint="10.98.0.10"), language="en-US")
client = CommonClient(
    service, "2017-03-12", EnvironmentVariableCredential().get_credential(), os.environ["TENCENTCLOUD_REGION"], profile
)
answer = client.call_json(action, json.loads(parameters))["Response"]
print(json.dumps(answer))
sys.exit("Error" in answer)
