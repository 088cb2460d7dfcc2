# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: estimate
short_description: What the migration of a source will take
version_added: 0.1.0
description:
  - Takes the facts that P(fleetlift.cvm.preflight#module) returned, and estimates what will be sent, how long that
    takes and how long the server will be down.
author:
  - Fleetlift contributors (@fleetlift)
positional: _input
options:
  _input:
    description: The facts of the source.
    type: dict
    required: true
  pairs:
    description:
      - The disks that are migrated, as P(fleetlift.cvm.assess#module) returns them. All disks when there is none.
    type: list
    elements: dict
    default: []
  bandwidth_limit:
    description: The source's own limit in bytes per second. V(0) is none.
    type: float
    default: 0
  budget:
    description: The bandwidth budget of all sources in bytes per second. V(0) is none.
    type: float
    default: 0
  share:
    description: The weight of this source in the sharing of O(budget).
    type: int
    default: 1
  shares:
    description: The weights of all sources that run at once, this one included.
    type: list
    elements: int
    default: [1]
  tracked:
    description: Whether the source's changes can be tracked.
    type: bool
    default: true
  services:
    description: How many services are stopped for the cutover.
    type: int
    default: 0
  journal:
    description: The journal of the source. What an earlier run has measured is used.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Estimate what it will take
  ansible.builtin.set_fact:
    expected: "{{ preflight.facts | fleetlift.cvm.estimate(pairs=assessment.pairs, bandwidth_limit=10485760) }}"
"""

RETURN = r"""
_value:
  description:
    - What is expected; a figure that nothing is known for is null.
  type: dict
  sample:
    bytes_to_send: 4294967296
    traffic_bytes: 2576980378
    seconds: 291
    downtime_seconds: 110
    rate_bytes_per_second: 11796480
    assumptions: ["60% of what is read goes over the wire (assumed)"]
"""

from typing import Any

from ansible_collections.fleetlift.cvm.plugins.module_utils.estimate import (
    Circumstances,
    estimate,
    measured_compression,
)


def estimated(
    facts: dict[str, Any],
    *,
    pairs: list[dict[str, Any]] | None = None,
    bandwidth_limit: float = 0,
    budget: float = 0,
    share: int = 1,
    shares: list[int] | None = None,
    tracked: bool = True,
    services: int = 0,
    journal: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The estimate for the source with *facts*; see DOCUMENTATION."""
    wanted = {pair["device"] for pair in pairs or ()}
    disks = [disk for disk in facts.get("disks") or () if not wanted or disk["path"] in wanted]
    around = Circumstances(
        bandwidth_limit=float(bandwidth_limit),
        budget=float(budget),
        share=int(share) / max(1, sum(map(int, shares or [share]))),
        tracked=bool(tracked),
        services=int(services),
        compression=measured_compression(journal),
    )
    return estimate(disks, (facts.get("probe") or {}).get("bytes_per_second"), around)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        return {"estimate": estimated}
