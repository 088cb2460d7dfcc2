# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: transfer
short_description: Start, watch, tune or stop the replication of a source
version_added: 0.1.0
description:
  - Tells the sender on the source to replicate its disks to its landing, shows a line of progress every few
    seconds, and returns when source and target are in sync.
  - A replication that already runs is re-attached to. It runs on the source by itself, so neither a lost SSH
    connection nor an interrupted play ends it.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
  - fleetlift.cvm.bandwidth
options:
  state:
    description:
      - With V(in_sync) the replication runs and has reached the state in which a cutover is possible.
      - A source that was handed over and runs on is followed again, from what the target holds.
      - With V(started) it runs. With V(stopped) it does not; what reached the target stays and is not sent
        again later.
    type: str
    choices: [in_sync, started, stopped]
    default: in_sync
  migration:
    description: The migration's name. The inventory host name when not given.
    type: str
  bandwidth_limit:
    description:
      - The most that all connections of this source may send together, in bytes per second. V(0) is no limit.
      - Applies at once, also to a running transfer. Left as it is when not given.
      - Together with O(bandwidth_budget) it is the most that this source gets of the budget.
    type: int
  max_passes:
    description: The most passes over the disks before the source counts as in sync.
    type: int
    default: 5
  max_downtime:
    description: Delta passes go on until the final pass is predicted to take at most this many seconds.
    type: int
    default: 30
  wait_timeout:
    description: How long to wait for O(state=in_sync), in seconds. V(0) is for ever.
    type: int
    default: 0
  stall_timeout:
    description: How long the target may be unreachable for the source before this is a failure, in seconds.
    type: int
    default: 600
  connection_grace:
    description: How long Ansible's own connection to the source may be lost while watching, in seconds.
    type: int
    default: 600
  poll_interval:
    description: Seconds between two looks at the agent.
    type: int
    default: 3
"""

EXAMPLES = r"""
- name: Replicate until in sync
  fleetlift.cvm.transfer:

- name: Slow a running transfer down to 20 MiB/s during office hours
  fleetlift.cvm.transfer:
    state: started
    bandwidth_limit: 20971520

- name: Stop replicating; what was sent stays on the target
  fleetlift.cvm.transfer:
    state: stopped
"""

RETURN = r"""
transfer:
  description: The agent's state; sizes in bytes, times in seconds.
  returned: when not in check mode
  type: dict
  contains:
    phase:
      description: One of C(idle), C(initial_sync), C(delta_sync), C(in_sync), C(stopped), C(failed), C(cutover).
      type: str
      sample: in_sync
    totals:
      description: Bytes read, sent, put on the wire and skipped since the sender started.
      type: dict
      sample: {bytes_read: 3221225472, bytes_sent: 412876800, bytes_wire: 171966464, bytes_skipped: 0}
    passes:
      description: Each pass with its kind, duration and bytes.
      type: list
      elements: dict
      sample: []
    sync:
      description:
        - How the copy follows the source. C(mode) is C(tracking) or C(rehash), and C(reason) says why it is the latter.
          C(backlog) in bytes, C(lag) in seconds, rates in bytes per second, C(final_pass) the seconds that the last
          pass is expected to take.
      type: dict
      sample:
        mode: tracking
        reason: null
        backlog: 81920
        lag: 1.2
        write_rate: 310000
        send_rate: 42000000
        final_pass: 0.3
        converging: true
    used_blocks:
      description: For each disk the bytes in use and free, and what its volumes hold.
      type: list
      elements: dict
      sample: []
    unplanned:
      description:
        - Disks of the source that came into use since the migration was planned, and are not copied. A cutover refuses
          until a preflight has mapped them or left them behind.
      type: list
      elements: dict
      sample: [{device: /dev/sdc, mounts: [/srv]}]
    read_back:
      description: Bytes on the target that still have to be read back, and how many extents were found damaged.
      type: dict
      sample: {pending: 0, damaged: 0}
    features:
      description: What both ends agreed on.
      type: dict
      sample: {hash: blake3, compression: zstd, change_detector: xxh3_128}
reattached:
  description: Whether the replication ran already.
  returned: when O(state) is V(in_sync) or V(started), not in check mode
  type: bool
  sample: false
"""
