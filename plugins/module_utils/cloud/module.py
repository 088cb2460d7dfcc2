# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the cloud modules share: their options, their client and how they report a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback, missing_required_lib

from ..findings import Refusal
from .client import SDK_IMPORT_ERROR, SDK_PACKAGE, Access, CloudClient
from .instances import Instances


def cloud_argument_spec() -> dict[str, Any]:
    """The options of the documentation fragment ``fleetlift.cvm.cloud``."""
    return {
        "secret_id": {"type": "str", "no_log": True, "fallback": (env_fallback, ["TENCENTCLOUD_SECRET_ID"])},
        "secret_key": {"type": "str", "no_log": True, "fallback": (env_fallback, ["TENCENTCLOUD_SECRET_KEY"])},
        "token": {"type": "str", "no_log": True},
        "region": {"type": "str", "fallback": (env_fallback, ["TENCENTCLOUD_REGION"])},
        "endpoint": {"type": "str"},
        "endpoint_domain": {"type": "str"},
        "api_timeout": {"type": "int", "default": 60},
    }


def instances_for(module: AnsibleModule) -> tuple[Instances, CloudClient]:
    """The service and its client for *module*'s options; ends the module when the SDK is missing."""
    if SDK_IMPORT_ERROR:
        hint = f"{missing_required_lib(SDK_PACKAGE)} Install it with: python3 -m pip install {SDK_PACKAGE}"
        module.fail_json(msg=f"SDK_MISSING: {hint}", exception=SDK_IMPORT_ERROR)
    access = Access(**{name: module.params[name] for name in cloud_argument_spec()})
    client = CloudClient(access)
    return Instances(client, access.region), client


@contextmanager
def reported(module: AnsibleModule) -> Iterator[None]:
    """Ends *module* with the finding of a :class:`Refusal` raised inside."""
    try:
        yield
    except Refusal as refusal:
        module.fail_json(msg=str(refusal), finding=refusal.finding.record())
