# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the cloud modules share: their options, their client and how they report a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback, missing_required_lib

from ..crc64 import CRC_IMPORT_ERROR, CRC_PACKAGE
from ..findings import Refusal
from .client import SDK_IMPORT_ERROR, SDK_PACKAGE, Access, CloudClient
from .cos_client import COS_IMPORT_ERROR, COS_PACKAGE, CosClient, check_names
from .instances import Instances
from .request_rate import shared_pace


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


def cos_argument_spec() -> dict[str, Any]:
    """The options of the documentation fragment ``fleetlift.cvm.cos``."""
    return {
        **cloud_argument_spec(),
        "cos_endpoint": {"type": "str"},
        "bucket": {"type": "str", "required": True},
    }


def instances_for(module: AnsibleModule) -> tuple[Instances, CloudClient]:
    """The service and its client for *module*'s options; ends the module when the SDK is missing."""
    client = client_for(module)
    return Instances(client, module.params["region"]), client


def client_for(module: AnsibleModule) -> CloudClient:
    """The API's client for *module*'s options; ends the module when the SDK is missing."""
    require(module, SDK_PACKAGE, SDK_IMPORT_ERROR)
    access = Access(**{name: module.params[name] for name in cloud_argument_spec()})
    return CloudClient(
        access, pace=shared_pace(f"{access.secret_id} {access.endpoint or access.endpoint_domain or ''}")
    )


def cos_client_for(module: AnsibleModule, connections: int = 1) -> CosClient:
    """The COS client for *module*'s options, whose bucket and key are checked; ends the module without the SDK."""
    require(module, COS_PACKAGE, COS_IMPORT_ERROR)
    require(module, CRC_PACKAGE, CRC_IMPORT_ERROR)
    check_names(module.params["bucket"], module.params.get("key"))
    access = Access(**{name: module.params[name] for name in cloud_argument_spec()})
    return CosClient(access, cos_endpoint=module.params["cos_endpoint"], connections=connections)


def require(module: AnsibleModule, package: str, import_error: str | None) -> None:
    """End *module* when *package* could not be imported."""
    if import_error:
        hint = f"{missing_required_lib(package)} Install it with: python3 -m pip install {package}"
        module.fail_json(msg=f"SDK_MISSING: {hint}", exception=import_error)


@contextmanager
def reported(module: AnsibleModule) -> Iterator[None]:
    """Ends *module* with the finding of a :class:`Refusal` raised inside."""
    try:
        yield
    except Refusal as refusal:
        module.fail_json(msg=str(refusal), finding=refusal.finding.record())
