# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.image_prepare: brings the agent along and shows how far it is."""

from __future__ import annotations

from ..plugin_utils.image_action import LongImageAction


class ActionModule(LongImageAction):
    pass
