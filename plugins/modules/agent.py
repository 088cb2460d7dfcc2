# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Deploy or remove the replication agent on a source or in a landing
version_added: 0.1.0
description:
  - Copies the agent (one Python zipapp) to C(/run/fleetlift/MIGRATION), which is in RAM, checks its SHA-256,
    delivers the keys and certificates of this pair over the Ansible connection, and starts the agent as a daemon
    that waits for orders.
  - Nothing is written to the server's disks. Needs Python 3.9 or newer for the agent, but no Python for Ansible itself.
  - The keys and certificates are made on the controller with the C(cryptography) library. Each end trusts the
    other end's certificate and nothing else.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  state:
    description: Whether the agent runs, or every trace of it is gone.
    type: str
    choices: [present, absent]
    default: present
  role:
    description: V(sender) on the source, V(receiver) in the landing. Required for O(state=present).
    type: str
    choices: [sender, receiver]
  migration:
    description: The migration's name. The inventory host name when not given.
    type: str
  disks:
    description: The disk pairs, as RV(fleetlift.cvm.assess#module:pairs) gives them. Required for O(state=present).
    type: list
    elements: dict
    suboptions:
      id:
        description: The pair's name, C(d0), C(d1) and so on.
        type: str
        required: true
      device:
        description: The source's disk.
        type: path
        required: true
      size:
        description: The source disk's size in bytes.
        type: int
        required: true
      source_serial:
        description: The source disk's serial number, when it has one. The sender refuses a disk with another one.
        type: str
      target_serial:
        description: The serial number of the target's disk, which on a CVM is its disk ID.
        type: str
        required: true
      target_size:
        description: The target disk's size in bytes.
        type: int
  peer_host:
    description: The landing's address as the source reaches it. Required for O(role=sender).
    type: str
  proxy:
    description:
      - An HTTP proxy through which the sender connects, such as V(http://10.0.0.5:3128). It has to allow C(CONNECT) to
        O(peer_host) and O(port) without a password. Nothing of the connection can be read by it.
    type: str
  port:
    description: The TCP port on which the receiver listens.
    type: int
    default: 443
  connections:
    description: Parallel TLS connections.
    type: int
    default: 4
  change_tracking:
    description:
      - Whether the sender has the kernel tell which blocks change (tracefs, no module is loaded). Where that is not
        possible every pass reads the disks in full, the last one included, and the agent's state says why.
    type: bool
    default: true
  audit:
    description: Whether the disks are read once more before tracked changes are trusted on this server.
    type: bool
    default: true
  skip_free:
    description: Whether blocks that no filesystem uses are left out. On the target they read as zeros.
    type: bool
    default: true
  left_behind:
    description:
      - Paths of disks that may be in use on the source and stay behind, as RV(fleetlift.cvm.assess#module:left_behind)
        gives them. Any other disk from which something gets mounted keeps M(fleetlift.cvm.cutover) from beginning.
    type: list
    elements: str
    default: []
  compression:
    description:
      - Whether what is sent is compressed. V(auto) does it as far as the copy gets faster, V(always) also over a link
        that is faster than compressing, which saves what the traffic costs.
    type: str
    choices: [auto, always, never]
    default: auto
  pki_directory:
    description:
      - A directory on the controller for this pair's keys and certificates. Made with mode C(0700) when missing.
      - Required for O(state=present).
    type: path
  python:
    description: The interpreter for the agent. A suitable one is found when not given.
    type: str
  runtime:
    description:
      - A C(.tar.gz) on the controller with a relocatable Python (C(bin/python3) at its top or one directory
        below, as in the archives of python-build-standalone), for servers and rescue systems whose own Python is
        too old.
      - Unpacked into the agent's directory in RAM, and only when no suitable interpreter is found there.
    type: path
"""

EXAMPLES = r"""
- name: Deploy the sender on the source
  fleetlift.cvm.agent:
    role: sender
    disks: "{{ fleetlift_assessment.pairs }}"
    peer_host: 203.0.113.11
    pki_directory: "{{ fleetlift_state_dir }}/{{ inventory_hostname }}/pki"

- name: Remove every trace of the agent
  fleetlift.cvm.agent:
    state: absent
"""

RETURN = r"""
directory:
  description: Where the agent lives on the server.
  returned: always
  type: str
  sample: /run/fleetlift/web1
sha256:
  description: The digest of the agent that runs.
  returned: when O(state=present)
  type: str
  sample: 2f3c1d6f0e5ab1c2f0d4b8c0e5a1f7d5b5a4c1f9f2f24f1d4f6f7d2b3c4a5968
pid:
  description: The daemon's process ID.
  returned: when O(state=present), not in check mode
  type: int
  sample: 4711
python:
  description: The interpreter that runs the agent.
  returned: when O(state=present)
  type: str
  sample: /usr/bin/python3
restarted:
  description: Whether a running daemon was replaced because the agent or its configuration changed.
  returned: when O(state=present)
  type: bool
  sample: false
"""
