#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: journal
short_description: Note what has happened to a source
description:
  - Keeps one JSON file per source on the controller, with the phases of its migration, when they ended and what they
    returned.
  - The file is a cache. Nothing is lost with it but the history; a migration goes on from what the agents and the cloud
    know.
  - Noting a phase never reports a change, because it is bookkeeping about changes that other modules report. Removing
    the journal does.
author:
  - Fleetlift contributors (@fleetlift)
version_added: 0.1.0
extends_documentation_fragment:
  - fleetlift.cvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - In check mode nothing is written; RV(journal) is what would be.
options:
  path:
    description:
      - The directory of the journals. It is made, readable for its owner only, when a phase is noted.
    type: path
    required: true
  source:
    description:
      - Name of the source; the file is named after it.
    type: str
    required: true
  target:
    description:
      - Id of the target instance. A journal about another target is begun anew.
    type: str
  state:
    description:
      - V(present) notes O(phase), V(read) only reads, V(absent) removes the file.
    type: str
    choices: [present, read, absent]
    default: present
  phase:
    description:
      - The phase to note. Required with O(state=present).
    type: str
  status:
    description:
      - Whether the phase has begun, has ended well, has ended badly, or was not begun on purpose.
    type: str
    choices: [started, ok, failed, held]
    default: ok
  data:
    description:
      - What there is to say about the phase. It is merged with what was said about it before; what a failure said goes
        when the phase is noted again.
      - Do not put secrets into it.
    type: dict
    default: {}
notes:
  - Runs on the controller. Use C(delegate_to=localhost) in a play over servers.
"""

EXAMPLES = r"""
- name: Note that the source is in sync
  fleetlift.cvm.journal:
    path: ~/.local/state/fleetlift/journal
    source: "{{ inventory_hostname }}"
    target: "{{ fleetlift_target }}"
    phase: transfer
    data:
      bytes_sent: 1073741824
  delegate_to: localhost

- name: Read what has happened so far
  fleetlift.cvm.journal:
    path: ~/.local/state/fleetlift/journal
    source: "{{ inventory_hostname }}"
    state: read
  delegate_to: localhost
  register: so_far
"""

RETURN = r"""
journal:
  description: The journal, null if there is none.
  returned: success
  type: dict
  contains:
    schema:
      description: Version of this form.
      type: int
    source:
      description: Name of the source.
      type: str
    target:
      description: Id of the target instance.
      type: str
    phase:
      description: The last phase that ended well, null before the first.
      type: str
    status:
      description: Status of the phase that was noted last.
      type: str
    updated:
      description: When it was noted, in seconds since the epoch.
      type: float
    phases:
      description: The phases in the order in which they were noted last.
      type: list
      elements: dict
      contains:
        phase:
          description: Name of the phase.
          type: str
        status:
          description: V(started), V(ok), V(failed) or V(held).
          type: str
        started:
          description: When it began, if that was noted, in seconds since the epoch.
          type: float
        finished:
          description: When it ended, in seconds since the epoch.
          type: float
        data:
          description: What was said about it.
          type: dict
    data:
      description: The data of every phase that has not failed, by its name.
      type: dict
file:
  description: The file.
  returned: success
  type: str
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""
