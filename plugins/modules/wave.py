# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wave
short_description: Let sources begin their cutover wave by wave
version_added: 0.1.0
description:
  - Keeps a ledger on the controller of who is being cut over in this run, and lets a source begin when its wave is due,
    not too many others are at it, not too many have failed, somebody has approved the wave, and its window is open.
  - A source that has to wait is waited for. One that is held back is told why, and goes on being replicated.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  state:
    description:
      - V(opened) begins a run, with the sources in O(waves). Once for all sources.
      - V(begun) waits until this source may begin.
      - V(ended) notes how its cutover ended.
    type: str
    choices: [opened, begun, ended]
    required: true
  ledger:
    description: The file of the ledger on the controller.
    type: path
    required: true
  waves:
    description: The wave of each source of the run, by the source's name. For O(state=opened).
    type: dict
  source:
    description: Name of the source. The inventory host name when not given.
    type: str
  wave:
    description: The wave of this source. Waves begin in the order of their numbers.
    type: int
    default: 1
  result:
    description: How the cutover ended. For O(state=ended).
    type: str
    choices: [ok, failed]
    default: ok
  concurrency:
    description: How many sources of a wave are cut over at once. V(0) is no limit.
    type: int
    default: 0
  failure_budget:
    description: How many cutovers may fail in this run before no other is begun. Those that run are finished.
    type: int
    default: 0
  approval:
    description: Whether somebody at the terminal has to approve each wave but the first.
    type: bool
    default: true
  window:
    description: When the cutover may begin, such as V(22:00-05:00 Europe/Berlin). At any time when not given.
    type: str
  timeout:
    description: Seconds after which a cutover whose end nobody noted counts as failed.
    type: int
    default: 7200
  poll_interval:
    description: Seconds between two looks at the ledger.
    type: float
    default: 2
"""

EXAMPLES = r"""
- name: Wait for this source's turn
  fleetlift.cvm.wave:
    state: begun
    ledger: /srv/fleetlift/fleet/waves.json
    wave: "{{ fleetlift_wave }}"
    concurrency: 5
    failure_budget: 1
    window: 22:00-05:00 Europe/Berlin
  register: turn
"""

RETURN = r"""
begun:
  description: Whether the source may begin. If not, RV(finding) says why.
  returned: with O(state=begun)
  type: bool
waited_seconds:
  description: How long it waited for its turn.
  returned: with O(state=begun)
  type: float
finding:
  description: Why the source is held back, or what was wrong, with its code, cause and next step.
  returned: when it is
  type: dict
"""
