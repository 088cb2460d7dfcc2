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
  - Tries each check until it succeeds or its time is over. Ports, URLs and SSH are tried from the controller; commands
    run over the task's own connection.
  - Every check is tried and reported, whatever fails.
  - Changes nothing.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes.read_only
  - fleetlift.cvm.attributes
options:
  address:
    description:
      - The server's address.
    type: str
    required: true
  checks:
    description:
      - What must answer. Each check is exactly one of C(port), C(url), C(ssh), C(command) and C(systemd).
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
      body:
        description:
          - A regular expression that must match somewhere in the first MiB of the answer of O(checks[].url).
        type: str
      validate_certs:
        description:
          - Whether the certificate of O(checks[].url) is checked.
        type: bool
        default: true
      ssh:
        description:
          - An SSH server must introduce itself, and with one of O(host_keys), when those are given.
        type: bool
      ssh_port:
        description:
          - Where O(checks[].ssh) is tried.
        type: int
        default: 22
      command:
        description:
          - A command for the shell of the task's host, which must end with O(checks[].rc).
        type: str
      rc:
        description:
          - The exit status of O(checks[].command).
        type: int
        default: 0
      output:
        description:
          - A regular expression that must match somewhere in what O(checks[].command) prints.
        type: str
      systemd:
        description:
          - States of C(systemctl is-system-running) that are accepted, such as V(running) and V(degraded). Runs on the
            task's host.
        type: list
        elements: str
      timeout:
        description:
          - Seconds for this check, within O(timeout).
        type: int
  host_keys:
    description:
      - Public host keys, each with its type, that the server may have. With none, any will do.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - How long all checks together may take, in seconds.
    type: int
    default: 300
notes:
  - Commands need a connection to the server that is looked at. In a play over sources, give the task the variable
    C(ansible_host) with the target's address. Without commands, C(delegate_to=localhost) will do.
"""

EXAMPLES = r"""
- name: The web server is there
  fleetlift.cvm.health:
    address: 203.0.113.11
    checks:
      - ssh: true
      - url: http://203.0.113.11/
        body: Welcome
      - command: pg_isready
      - systemd: [running, degraded]
        timeout: 120
  vars:
    ansible_host: 203.0.113.11
"""

RETURN = r"""
checks:
  description:
    - The checks in their order, how each one ended after how many seconds and tries, and what the last try saw.
  returned: always
  type: list
  elements: dict
  sample:
    - check: port 22
      ok: true
      seconds: 1.2
      tries: 3
      evidence: SSH-2.0-OpenSSH_9.2p1
finding:
  description: The first check that failed, with cause and next step; its evidence has all of them.
  returned: failure
  type: dict
"""
