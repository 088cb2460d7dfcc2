# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent that replicates a source server's disks onto a target instance.

One package for both roles: the *sender* runs on the source server, the
*receiver* in the landing. Only the standard library is needed.
"""

from __future__ import annotations

__version__ = "0.1.0"
