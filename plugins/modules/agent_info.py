# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_info
short_description: Read the state of a replication agent
version_added: 0.1.0
description:
  - Asks the agent of a migration, on a source or in a landing, for its state. Changes nothing.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  migration:
    description: The migration's name. The inventory host name when not given.
    type: str
"""

EXAMPLES = r"""
- name: Look at the agent
  fleetlift.cvm.agent_info:
  register: agent
"""

RETURN = r"""
running:
  description: Whether an agent runs.
  returned: always
  type: bool
  sample: true
agent:
  description: The agent's state. Empty when none runs.
  returned: always
  type: dict
  sample: {role: receiver, phase: sealed}
"""
