# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the image modules have in common, and what the estimate of some of them assumes."""

    DOCUMENTATION = r"""
options:
  path:
    description: The image file, on the machine that the task runs on.
    type: path
    required: true
  agent:
    description: The agent's program, whose parsers are used. Set by this collection itself.
    type: path
requirements:
  - qemu-img and qemu-nbd (the package is qemu-utils, qemu-img or qemu-tools)
notes:
  - The format is the one of the file's content. QEMU's programs are always told which format to read and never follow a
    reference to another file, so that an image cannot make them read files of this machine.
"""

    ESTIMATE = r"""
options:
  bandwidth:
    description: The bandwidth to COS for the estimate, in bytes per second. The default is 100 Mbit/s.
    type: float
    default: 12500000
  efficiency:
    description: How much of the bandwidth the payload gets. The default is what the vendor's FAQ reports.
    type: float
    default: 0.75
  import_rate:
    description:
      - How fast the cloud makes an image of the uploaded file, in bytes per second. The default is the vendor's
        planning number.
    type: float
    default: 160000000
  storage_price:
    description:
      - The price of one GB (10^9 bytes) in COS for a month, in whatever currency. Without it no cost is told.
      - Uploading to COS is free of charge; the line that it uses may not be.
    type: float
  days_kept:
    description: For how many days the object is kept in COS.
    type: float
    default: 1
"""
