# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cutover
short_description: Bring the target's disks to a consistent, verified final state and hand over, or take it back
version_added: 0.1.0
description:
  - Stops the named services on the source, freezes its filesystems, sends what changed, and has the landing
    read its disks back until both manifests are equal. Then powers the source off, or lets it run on.
  - Any failure thaws the filesystems and starts the services again that were stopped. A watchdog on the source
    does the same when the agent or the controller is gone.
  - With O(state=given_back) the source is the server again, whatever had been done to it.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
  - fleetlift.cvm.bandwidth
options:
  state:
    description:
      - With V(handed_over) the target's disks are the server, and the source is what O(source_after) says.
      - With V(given_back) a cutover that is under way is undone, a fence is taken down, and O(services) run. Nothing is
        done to a source that works already. Make sure that its target is off.
    type: str
    choices: [handed_over, given_back]
    default: handed_over
  migration:
    description: The migration's name. The inventory host name when not given.
    type: str
  services:
    description:
      - Services to stop before the filesystems are frozen, in this order.
      - With O(state=given_back), services that have to run.
    type: list
    elements: str
    default: []
  service_timeout:
    description: How long one service may take to stop, in seconds.
    type: int
    default: 60
  freeze_timeout:
    description: The watchdog thaws the filesystems after this many seconds whatever happens.
    type: int
    default: 600
  hold_timeout:
    description:
      - How long a verified source waits, frozen, for the order to power off or to run on. Then it thaws and
        the cutover is void.
    type: int
    default: 120
  verify_age:
    description:
      - What was not read back from the target's disks within so many seconds is read back before the first service
        stops. V(0) reads back all of them. What was written since it was last read back always is.
    type: int
    default: 3600
  pre_freeze:
    description:
      - Commands for C(/bin/sh) on the source, in this order, after the services were stopped and before the
        filesystems are frozen. One that fails undoes the cutover.
    type: list
    elements: str
    default: []
  post_thaw:
    description: Commands for C(/bin/sh) on the source after its filesystems were thawed, if O(pre_freeze) was reached.
    type: list
    elements: str
    default: []
  hook_timeout:
    description: How long one of these commands may take, in seconds.
    type: int
    default: 60
  source_after:
    description:
      - With V(frozen_off) the source is powered off while still frozen, so that nothing is written to it after
        the final pass. Power it on again to go back.
      - With V(fenced) it runs on, its services stopped, and nothing but the SSH of its controller reaches it or is
        reached by it (nftables, in the kernel only). It can be given back without being powered on. A restart of the
        source ends the fence and starts its services.
      - With V(running) it thaws and its services start again. Use it for rehearsals.
    type: str
    choices: [frozen_off, fenced, running]
    default: frozen_off
  fence_allow:
    description:
      - Addresses or networks of controllers that a fence lets through. The one that this connection comes from, as the
        source sees it, is always among them.
    type: list
    elements: str
    default: []
  python:
    description: The interpreter for the agent, for O(state=given_back) on a source that has none running.
    type: str
  runtime:
    description: A C(.tar.gz) with a relocatable Python, for a source that has no interpreter that is new enough.
    type: path
  connection_grace:
    description: How long Ansible's own connection to the source may be lost while watching, in seconds.
    type: int
    default: 60
  poll_interval:
    description: Seconds between two looks at the agent.
    type: float
    default: 0.5
"""

EXAMPLES = r"""
- name: Cut over, and power the source off
  fleetlift.cvm.cutover:
    services: [nginx, postgresql]

- name: Put the source back to work
  fleetlift.cvm.cutover:
    state: given_back
    services: [nginx, postgresql]

- name: Rehearse the final pass and let the source run on
  fleetlift.cvm.cutover:
    services: [postgresql]
    source_after: running
"""

RETURN = r"""
cutover:
  description: What the agent did; times in seconds.
  returned: when not in check mode
  type: dict
  contains:
    root_hash:
      description: The hash over the manifests of all disks, the same on both sides.
      type: str
      sample: 5d41402abc4b2a76b9719d911017c592ae2f1a6c6d1f7a3ff2a5b7a1c5c1d9e0
    verified:
      description: Whether the landing read its disks back and found what the source had sent.
      type: bool
      sample: true
    services_stopped:
      description: The services that ran and were stopped.
      type: list
      elements: str
      sample: [nginx]
    frozen:
      description: The mount points that were frozen.
      type: list
      elements: str
      sample: [/]
    timings:
      description:
        - Where the time went. Downtime begins with C(stop_services); C(pre_freeze) are the hooks, C(flush) has most of
          what the services left in memory written out and sent, and nothing is held yet. C(freeze), C(drain) (what
          changed last, and what is in use), C(send) and C(verify) happen while frozen.
        - C(approach) comes before all of them, while the services still run.
      type: dict
      sample:
        approach: 1.2
        stop_services: 0.4
        pre_freeze: 0.0
        flush: 0.3
        freeze: 0.1
        drain: 0.1
        send: 0.2
        verify: 0.2
        frozen_total: 0.6
passes:
  description: All passes of this migration, the final one included.
  returned: when not in check mode
  type: list
  elements: dict
  sample: []
totals:
  description: Bytes read, sent, put on the wire and skipped since the sender started.
  returned: when not in check mode
  type: dict
  sample: {bytes_read: 3221225472, bytes_sent: 412876800}
quiesced_at:
  description:
    - When the first service was told to stop, as seconds since the epoch on the controller. Downtime
      begins here.
  returned: when not in check mode
  type: float
  sample: 1790000000.5
source:
  description: What became of the source.
  returned: when not in check mode
  type: str
  choices: [off, fenced, running]
  sample: off
aborted:
  description: Whether a cutover was under way and was undone.
  returned: when O(state=given_back), not in check mode
  type: bool
  sample: false
unfenced:
  description: Whether a fence was taken down.
  returned: when O(state=given_back), not in check mode
  type: bool
  sample: true
started:
  description: The services that did not run and were started.
  returned: when O(state=given_back), not in check mode
  type: list
  elements: str
  sample: [nginx]
"""
