# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which parts of a disk its filesystems call free, so that they travel as zeros."""

from __future__ import annotations

from .map import UsedMap, VolumeUse, used_map

__all__ = ["UsedMap", "VolumeUse", "used_map"]
