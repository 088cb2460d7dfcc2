# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How the tasks that watch a transfer share the bandwidth of a site."""

    DOCUMENTATION = r"""
options:
  bandwidth_budget:
    description:
      - The most that all transfers with the same O(bandwidth_ledger) may send together, in bytes per second. V(0) is no
        budget.
      - It is shared by O(bandwidth_share), and shared anew as transfers begin and end, by the tasks that watch them. A
        transfer that no task watches any more falls back to a part of its share by itself after two minutes.
    type: int
    default: 0
  bandwidth_schedule:
    description:
      - Other budgets for times of day, each with a C(window) such as V(08:00-18:00 Europe/Berlin) and a C(budget) in
        bytes per second. The first window that is open counts, O(bandwidth_budget) outside of all.
    type: list
    elements: dict
    default: []
  bandwidth_share:
    description: The weight of this source in the sharing.
    type: int
    default: 1
  bandwidth_ledger:
    description: The file on the controller in which the transfers note what they use. Without it there is no budget.
    type: path
"""
