# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_report
short_description: Write what the preflight found about a fleet
version_added: 0.1.0
description:
  - Writes one report for all given sources, as JSON for programs, as JUnit XML for a pipeline, and as one page of HTML
    for people, and prints a table.
  - The page needs nothing but a browser, makes no request and can be filtered by server, wave, severity and words.
  - Run it once, on the controller. It reads what the role P(fleetlift.cvm.preflight#role) left with each source.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes
options:
  path:
    description:
      - The directory to write to. It is made if it does not exist.
    type: path
    required: true
  sources:
    description:
      - The names of the sources in the inventory. One that could not be reached is part of the report like the others.
    type: list
    elements: str
    required: true
  estimate:
    description:
      - Figures about the fleet as a whole, which the page shows at its top. A name tells its unit by its end,
        C(_bytes), C(_seconds) or C(_per_second).
    type: dict
    default: {}
notes:
  - The reports name servers, addresses and what runs on them. They are readable for the user who runs Ansible, no
    other.
  - In check mode nothing is written.
"""

EXAMPLES = r"""
- name: Report on all sources
  fleetlift.cvm.preflight_report:
    path: /srv/fleetlift/preflight
    sources: "{{ groups['sources'] }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
files:
  description: The reports.
  returned: success
  type: dict
  contains:
    json:
      description: Everything, for programs.
      type: str
      sample: /srv/fleetlift/preflight/preflight.json
    junit:
      description: A test suite for each source, with a failure for each blocker.
      type: str
      sample: /srv/fleetlift/preflight/preflight.xml
    html:
      description: The page.
      type: str
      sample: /srv/fleetlift/preflight/preflight.html
summary:
  description: How many sources can migrate, and how many findings there are.
  returned: success
  type: dict
  sample:
    {sources: 3, ready: 2, blocked: 1, done: 0, blockers: 1, warnings: 4, notes: 5, accepted: 0, used_bytes: 5368709120}
"""
