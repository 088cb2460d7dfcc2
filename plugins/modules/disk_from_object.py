#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_from_object
short_description: Write an uploaded raw image onto an attached disk, from the landing
version_added: 0.1.0
description:
  - Has the landing read an object of COS and write it onto one of the instance's disks. The data goes from COS to the
    disk inside the region; nothing passes through the controller.
  - The disk is the one whose serial number is O(disk_id), is large enough, and is not in use. Any other is refused.
  - What arrives, and what is then read back from the disk, is compared with the file by SHA-256. A disk that holds the
    file already is left alone.
  - The cloud's API key stays on the controller; the landing gets a link that is signed for this, and shown nowhere.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cos
  - fleetlift.cvm.attributes
options:
  key:
    description: The object's key.
    type: str
    required: true
  path:
    description: The raw image on the controller that was uploaded, which is read to know its SHA-256.
    type: path
    required: true
  disk_id:
    description: The cloud's id of the disk, which is its serial number in the landing.
    type: str
    required: true
  url_life:
    description: How long the link is valid, in seconds.
    type: int
    default: 86400
  migration:
    description: Name of the migration. The default is the host's name.
    type: str
  python:
    description: The interpreter for the agent in the landing; found by itself if not set.
    type: str
  runtime:
    description: An archive on the controller with a Python for landings that have none that is new enough.
    type: path
attributes:
  action:
    description: Is an action plugin. The task runs in the landing, nothing is installed there.
    support: full
notes:
  - Use it in the landing, with C(delegate_to) its address.
"""

EXAMPLES = r"""
- name: Write the data disk
  fleetlift.cvm.disk_from_object:
    bucket: images-1250000000
    key: images/db1-data.raw
    path: /srv/images/db1-data.raw
    disk_id: disk-xxxxxxxx
  delegate_to: "{{ landing.address }}"
"""

RETURN = r"""
seconds:
  description: How long it took in the landing.
  returned: success
  type: float
size:
  description: Bytes of the image.
  returned: success
  type: int
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""
