# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Show what happened to each source
version_added: 0.1.0
description:
  - Reads the journals of the given sources on the controller, prints one table and returns it as data.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  path:
    description: The directory of the journals on the controller.
    type: path
    required: true
  sources:
    description: The inventory names to report on.
    type: list
    elements: str
    required: true
  kind:
    description: Whether the sources are running servers or image files, which decides about the columns.
    type: str
    choices: [servers, images]
    default: servers
  fail_on_failure:
    description: Whether a source whose last phase failed fails this task, after the table.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Show what happened to each source
  fleetlift.cvm.report:
    path: "{{ fleetlift_state_dir }}/journal"
    sources: "{{ groups['sources'] }}"
"""

RETURN = r"""
sources:
  description: One entry per source; sizes in bytes, downtime in seconds.
  returned: always
  type: list
  elements: dict
  sample:
    - source: web1
      target: ins-webtgt01
      phase: finalize
      status: ok
      bytes_read: 3221225472
      bytes_sent: 412876800
      bytes_wire: 171966464
      passes: 3
      downtime: 12.4
      verified: true
      message: ""
"""
