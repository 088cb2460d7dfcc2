#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: health
short_description: Wait until a server answers as it should
version_added: 0.1.0
description:
  - Tries each check until it succeeds or the time is over. Runs on the controller, needs nothing on the server.
  - Changes nothing.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes.read_only
  - fleetlift.cvm.attributes
options:
  address:
    description:
      - The server's address, for checks that name a port.
    type: str
    required: true
  checks:
    description:
      - What must answer. Each check has either a port or a URL.
    type: list
    elements: dict
    required: true
    suboptions:
      port:
        description:
          - A TCP port that must accept a connection. On port 22 an SSH server must introduce itself.
        type: int
      url:
        description:
          - A URL that must answer.
        type: str
      status:
        description:
          - The HTTP status that O(checks[].url) must answer with.
        type: int
        default: 200
  timeout:
    description:
      - How long all checks together may take, in seconds.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: The web server is there
  fleetlift.cvm.health:
    address: 203.0.113.11
    checks:
      - port: 22
      - url: http://203.0.113.11/
  delegate_to: localhost
"""

RETURN = r"""
checks:
  description: The checks in their order, and after how many seconds each one succeeded.
  returned: success
  type: list
  elements: dict
  sample:
    - check: port 22
      seconds: 1.2
finding:
  description: The check that failed, with cause and next step.
  returned: failure
  type: dict
"""

import socket
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal, refuse
from ansible_collections.fleetlift.cvm.plugins.module_utils.ssh_banner import read_banner

# Seconds between two tries, and for one try.
PAUSE = 0.5
TRY_TIMEOUT = 5


def name_of(check: dict[str, Any]) -> str:
    """How the user recognises the check."""
    return check["url"] or f"port {check['port']}"


def attempt(address: str, check: dict[str, Any]) -> None:
    """One try. Raises OSError (which HTTP errors are) with the reason when it does not succeed."""
    if check["url"]:
        try:
            with open_url(check["url"], timeout=TRY_TIMEOUT, use_proxy=False, http_agent="fleetlift") as answer:
                status = answer.status
        except HTTPError as error:
            status = error.code
        if status != check["status"]:
            raise OSError(f"status {status}, not {check['status']}")
    elif check["port"] == 22:
        read_banner(address, 22, timeout=TRY_TIMEOUT)
    else:
        socket.create_connection((address, check["port"]), TRY_TIMEOUT).close()


def wait_for(address: str, check: dict[str, Any], deadline: float) -> None:
    """Try until it succeeds. Raises Refusal (HEALTH_CHECK_FAILED) with the last reason when the time is over."""
    while True:
        try:
            attempt(address, check)
            return
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise refuse(
                    "HEALTH_CHECK_FAILED",
                    address,
                    f"{name_of(check)} of {address} did not become healthy: {error}.",
                    "Look at the instance's console and at the service there. The source is untouched since the final"
                    " pass: to go back, stop the target and power the source on.",
                    check=name_of(check),
                    error=str(error),
                ) from error
            time.sleep(PAUSE)


def main() -> None:
    check_spec = {"port": {"type": "int"}, "url": {"type": "str"}, "status": {"type": "int", "default": 200}}
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "checks": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": check_spec,
                "required_one_of": [("port", "url")],
                "mutually_exclusive": [("port", "url")],
            },
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    done = []
    try:
        for check in module.params["checks"]:
            wait_for(module.params["address"], check, started + module.params["timeout"])
            done.append({"check": name_of(check), "seconds": round(time.monotonic() - started, 1)})
    except Refusal as refusal:
        module.fail_json(msg=str(refusal), finding=refusal.finding.record(), checks=done)
    module.exit_json(changed=False, checks=done)


if __name__ == "__main__":
    main()
